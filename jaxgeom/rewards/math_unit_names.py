"""The words that are units: measures, currencies, what problems count. Any other may change what it follows."""

_MEASURES = {
    "%": "% percent percentage pct",
    "degree": "° deg degree degrees ^\\circ 度",
    "°C": "°C celsius centigrade",
    "°F": "°F fahrenheit",
    "radian": "rad radian radians",
    "mm": "mm millimeter millimeters millimetre millimetres 毫米",
    "cm": "cm centimeter centimeters centimetre centimetres 厘米",
    "dm": "dm decimeter decimeters decimetre decimetres 分米",
    "m": "m meter meters metre metres 米",
    "km": "km kilometer kilometers kilometre kilometres 千米 公里",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "unit": "unit units",
    "mg": "mg milligram milligrams",
    "g": "g gram grams 克",
    "kg": "kg kilogram kilograms 千克 公斤",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ton": "ton tons",
    "tonne": "tonne tonnes 吨",
    "ml": "ml mL milliliter milliliters millilitre millilitres 毫升",
    "l": "l L liter liters litre litres 升",
    "gallon": "gal gallon gallons",
    "quart": "qt quart quarts",
    "pint": "pt pint pints",
    "tablespoon": "tbsp tablespoon tablespoons",
    "teaspoon": "tsp teaspoon teaspoons",
    "acre": "acre acres",
    "hectare": "ha hectare hectares",
    "ms": "ms millisecond milliseconds",
    "s": "s sec secs second seconds 秒",
    "min": "min mins minute minutes 分钟",
    "h": "h hr hrs hour hours 小时",
    "day": "day days 天",
    "week": "wk week weeks 周",
    "month": "month months",
    "year": "yr yrs year years 年",
    "mph": "mph",
    "kph": "kph kmph kmh",
    "dollar": "$ dollar dollars USD usd buck bucks",
    "cent": "¢ cent cents penny pennies",
    "euro": "€ euro euros EUR",
    "pound sterling": "£ GBP",
    "yen": "yen JPY",
    "yuan": "yuan RMB CNY 元",
    "rupee": "₹ rupee rupees Rs INR",
    "peso": "peso pesos",
    "Hz": "Hz hertz",
    "kHz": "kHz kilohertz",
    "MHz": "MHz megahertz",
    "N": "N newton newtons",
    "kN": "kN kilonewton kilonewtons",
    "J": "J joule joules",
    "kJ": "kJ kilojoule kilojoules",
    "W": "W watt watts",
    "kW": "kW kilowatt kilowatts",
    "kWh": "kWh",
    "MW": "MW megawatt megawatts",
    "mW": "mW milliwatt milliwatts",
    "V": "V volt volts",
    "A": "amp amps ampere amperes",
    "ohm": "ohm ohms",
    "Pa": "Pa pascal pascals",
    "kPa": "kPa kilopascal kilopascals",
    "K": "kelvin kelvins",
    "mol": "mol mole moles",
    "eV": "eV",
    "bit": "bit bits",
    "byte": "byte bytes",
    "kB": "kB KB kilobyte kilobytes",
    "MB": "MB megabyte megabytes",
    "GB": "GB gigabyte gigabytes",
    "calorie": "cal calorie calories",
    "man": "man men",
    "woman": "woman women",
    "person": "person persons people 人",
    "child": "child children",
    "mouse": "mouse mice",
    "goose": "goose geese",
    "sheep": "sheep",
    "fish": "fish",
    "leaf": "leaf leaves",
    "loaf": "loaf loaves",
    "knife": "knife knives",
    "shelf": "shelf shelves",
    "vertex": "vertex vertices",
    "box": "box boxes",
    "bus": "bus buses",
    "class": "class classes",
    "glass": "glass glasses",
    "dress": "dress dresses",
    "dish": "dish dishes",
    "match": "match matches",
    "peach": "peach peaches",
    "potato": "potato potatoes",
    "tomato": "tomato tomatoes",
    "sandwich": "sandwich sandwiches",
    "branch": "branch branches",
    "bench": "bench benches",
    # "5 square" and "5 cube" may be powers, "5 point" and "5 time" the begin of more: the plural alone.
    "squares": "squares",
    "cubes": "cubes",
    "points": "points",
    "times": "times",
    **{word: word for word in "个 只 名 本 条 张 枚 件 棵 辆 次 种 组 位 支 朵 页 题 道 颗 头 盒 瓶 杯 岁".split()},
}
# What problems count, in the plural.
_COUNTED = """
    adults animals ants apples arrangements articles bags balloons balls bananas baskets bats beads beans bears bees
    bicycles bikes birds blocks boats books bottles bowls boys bricks buckets bugs buildings bulbs buttons cakes
    cameras candidates candles cans cards carrots cars cartons cats chairs chapters chickens chips chocolates
    choices circles clocks clowns coins combinations computers cones cookies corners cows crates crayons cupcakes
    cups customers cylinders diagonals digits dimes divisors dogs dolls dolphins donuts doors drawers drinks ducks
    edges eggs elements elephants employees envelopes erasers errors events exercises eyes faces factors farmers
    fields figures fingers flags floors flowers forks friends frogs games girls goals goats grapes guests guitars
    hamburgers hands hats heads horses hotdogs houses integers intersections intervals items jars jobs keys kids
    kittens lamps legs lemons lessons letters lights lines lions lollipops machines magazines maps marbles markers
    members messages miners monkeys motorcycles movies muffins mugs nails necklaces nickels notebooks novels numbers
    nuts objects oranges outcomes pages paintings pancakes papers parents partners parts passengers paths patients
    pears pebbles pencils penguins pens permutations phones photos pictures pieces pigs pillows pizzas planes plants
    plates players polygons pots presents primes prizes problems programs pupils questions rabbits raisins
    rectangles regions ribbons rings robots rocks rooks rooms roses rotations rounds routes rows rulers sailors
    scientists screws seashells seats seeds segments sentences shapes shares sheets shells ships shirts shoes sides
    singers skirts slices snacks snakes socks soldiers solutions songs spheres spiders spoons stamps stars steps
    stickers sticks stones stores students subsets teachers teams terms tests tickets tiles toys trains trees trials
    triangles trips trucks tulips turns turtles values vans vehicles visitors volunteers voters votes walls
    watermelons ways wheels windows words workers worms
"""
# Their singulars may be commands: "5 round", "5 floor".
_PLURAL_ALONE = frozenset("rounds floors factors primes terms parts turns shares".split())
_ENDINGS = {"babies": "baby", "berries": "berry", "cherries": "cherry", "strawberries": "strawberry", "cities": "city"}
_ENDINGS |= {"families": "family", "pies": "pie", "stories": "story", "candies": "candy", "puppies": "puppy"}
_IN_TWO_WORDS = {
    "per cent": "%",
    "degree celsius": "°C",
    "degrees celsius": "°C",
    "degree fahrenheit": "°F",
    "degrees fahrenheit": "°F",
    "degree C": "°C",
    "degrees C": "°C",
    "degree F": "°F",
    "degrees F": "°F",
    "pounds sterling": "pound sterling",
    "kilowatt hours": "kWh",
    "year old": "year old",
    "years old": "year old",
}
LENGTHS = frozenset("mm cm dm m km in ft yd mi unit".split())
"""Units that have squares and cubes."""

TIMES = frozenset("s min h".split())
"""Units of time that accelerations have squares of."""

SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
"""Words that multiply a number, in the singular, as they stand after it."""


def _table() -> dict[str, str]:
    table = {spelling: unit for unit, spellings in _MEASURES.items() for spelling in spellings.split()}
    singulars = {word: word.removesuffix("s") for word in _COUNTED.split()} | _ENDINGS
    for plural, singular in singulars.items():
        table.setdefault(plural, plural if plural in _PLURAL_ALONE else singular)
        if plural not in _PLURAL_ALONE:
            table.setdefault(singular, singular)
    areas = {"平方米": "m^2", "平方厘米": "cm^2", "平方千米": "km^2", "立方米": "m^3", "立方厘米": "cm^3"}
    return table | _IN_TWO_WORDS | areas


SPELLINGS = _table()
"""Every spelling of a unit, of one word or two, and the unit's own."""
