"""Answers that look like the right one and mean something else, and other ways to write it, by kind."""

# Right answer: what is wrong for it, what is right.
WORDS = {
    "3": (
        "3 millions|3 thousands|3 dozens|3 quadrillion|3 myriad|3 mega|"
        "3 eighths|3 thirds|3 halves|3 half|3 hundredths|"
        "3 negated|3 opposite|3 reciprocal|3 halved|3 doubled|3 conjugate|"
        "3 incorrect|3 impossible|3 none|3 deficit|3 ago|"
        "3 below zero|3 degrees below zero|3 cm below|3 apples fewer|"
        "3 apples wrong|3 wrong apples|3 units left of zero|"
        "3 squared|3 square|3 cube|3 floor|3 prime|3 factor|"
        "3 apples^2|3 cm^-1|3 cm cm|3 per hundred|3 percent off|3 zeros|"
        "3 m short|3 and a half|3 or more|3 of 4|3 out of 4|3 point 5|"
        "3 times 2|3 feet 2 inches|3 hours 20 minutes|3k|3M|"
        r"3\text{ thirds}|3\text{ millions}|3\text{ wrong}|3\text{ below zero}|"
        r"3\mathrm{million}|\text{3 wrong}|3\text{K}|"
        r"3 million|\$3 million|\$3\text{ billion}|\$3 wrong|€3 million|3 dozen eggs|3万|"
        r"3亿|3千|3倍|3分之一|3万个|3%%|3g/h|"
        "3 g h^{-1}|3 V/J|3m|3 pairs|negative 3|minus 3|-\\$3|3^T",
        "3 apples|3 cm|3 units|3 square units|3 sq units|3 cubic feet|"
        "3 miles per hour|3 km/h|3 m/s|3 people|3 dollars|\\$3|"
        r"3 different ways|3 years old|3 degrees Celsius|3 per cent|3\text{ square inches}|"
        r"3\text{ sq. cm}|3元|3个|3平方米|"
        "3 gallons per minute|3 apples per day|3 points|3 times|"
        "3 pies|3 women|3 boxes|3\\text{ units}^2",
    ),
    "5 zorbles": ("5|6 zorbles|5 apples|5 zorbles wrong", "5.0 zorbles|5 Zorbles"),
    "5 apples": ("5 oranges|5 apple trees|6 apples", "5|5 apple|5.0 apples"),
    "5000000": (
        "5|5 millions|5 million million|5 thousand",
        r"5 million|\text{5 million}|5 million dollars|5,000 thousand",
    ),
    "2500000": ("2.5|25 million|2.5 billion", "2.5 million|0.0025 billion"),
    "36": ("3|3 dozens", "3 dozen|3 dozen eggs"),
    "\\$5 million": ("5|\\$5|5 million euros|\\$5 billion", "5000000|5 million dollars"),
    "-5": ("5|negative -5|5 negative", r"negative 5|minus 5|\text{negative }5|-\$5|-5 degrees"),
    "5 cm^2": ("5 cm|5 cm^3|5 cubic cm|5 sq m", "5 sq cm|5 square centimeters|5 cm²|5"),
    "5 m/s": ("5 m s|5 m|5 s/m|5 m/s^2|5 km/s", r"5 m s^{-1}|5 meters per second|5\text{ m s}^{-1}"),
    "5 meters": ("5 minutes|5 g|5 M|5 m^2|5 mm|5 x", "5 m|5m|5 metres|5"),
}
LETTERS = {
    "ACT": ("CAT|TAC", r"A C T|\text{ACT}"),
    r"\text{BA}": (r"\text{AB}|AB|A\cdot B", "BA"),
    "ABC": (r"BAC|CBA|abc|\text{BCA}|B\cdot A\cdot C|AB", r"A\cdot B\cdot C"),
    "LRR": ("RRL|RLR|R^2L", "LRR"),
    "2ACT": ("2CAT", "2 ACT"),
    "H_2O": ("OH_2|2H_2O", "H_{2}O"),
    "P_1P_2": ("P_2P_1", ""),
    "x=CAT": ("x=ACT", ""),
    "x = cat": ("x = act", ""),
    "(AB, CD)": ("(BA, CD)|(AB, DC)", ""),
    "AB+CD": ("BA+CD|AB+DC", "CD+AB"),
    "0": ("AB-BA", ""),
    "cat": ("act|tac", ""),
    "htt": ("tth|hth", ""),
    "no": ("on", "No|NO"),
    "abC": ("abc|ABc", ""),
    "xy": ("", r"yx|x y|y\cdot x"),
    "ab": ("", "ba"),
    "x_1x_2": ("", "x_2x_1"),
    "\\frac{GMm}{r^2}": ("", "G\\frac{Mm}{r^2}"),
    "(1+r)^T": ("1+r", "(r+1)^T"),
    "B": (
        "(B) is wrong|B) is not the answer|(B) isn't right|not B",
        "(B) False|(B) is correct|(B) Not enough information",
    ),
    "(B) 13": ("(B) 12|(C) 13", "(B)|B) 13.0"),
}
COMMAS = {
    "(1,0)": ("(1,000)|(1, 000)", "(1, 0)"),
    "[1,0]": ("[1,000]", ""),
    "(2,0,3)": ("(2,000,3)", ""),
    "\\{0,1\\}": ("\\{1,000\\}", ""),
    "(1000,2)": ("(1,0,2)", "(1,000,2)|(1,000, 2)"),
    "1000": ("", "(1,000)"),
    "(1,50,7)": ("(1,050,7)", ""),
    "(2,500,000)": ("(3,500,000)|(2,500,0)|2500000|(2,500000)", "( 2,500,000 )"),
    "(1,234)": ("1234", "(1, 234)"),
    "1000,2000": ("", "1,000,2,000|2,000,1,000|1,000, 2,000"),
    "(12,500)": ("(12,000,500)", ""),
    "123": ("0,123", ""),
    "(-\\infty,1000)": ("(-\\infty,1,0)", "(-\\infty,1,000)"),
    "200,100": ("100,200", "200100"),
}
DATES_AND_BASES = {
    "1983": ("2020-12-25|2020 - 12 - 25", ""),
    "2020-12-25": ("1983|2020-25-12", "2020–12–25"),
    "x=1983": ("x=2020-12-25", ""),
    "-679": ("555-1234", ""),
    "1/2424": ("10/12/2020", ""),
    "63698": ("(555) 123-4567", ""),
    "-1": ("2019-2020", "5-6"),
    "-4": ("01-05", "1-5"),
    "0.5": ("1/02", "1/2"),
    "12:30": ("6:15|2/5", ""),
    "1:2:3": ("1:3:2|1/6", ""),
    "1/6": ("", "2/3/4"),
    "99": ("", "100-1"),
    "7_9": ("7_8", "7_{9}|7"),
    "3_5": ("3_4", ""),
    "12_9": ("12_8", "11"),
    "(7_8,1)": ("(7_9,1)", ""),
}
VALUES = {
    "3": ("3!!!", "3!!"),
    "15": ("-5!!", "5!!"),
    "720": ("3!!", "(3!)!"),
    "\\frac{105}{48}": ("", "\\frac{7!!}{6!!}"),
    "n!!": ("n!|(n!)!", ""),
    "1/3": (r"0.3\overline{4}|0.\overline{33}3|3.\overline{3}", r"0.\overline{3}|0.\dot{3}|0.\bar 3"),
    "1/6": ("", r"0.1\overline{6}|0.1\dot{6}"),
    "1/7": ("", r"0.\dot{1}4285\dot{7}"),
    "2/3": ("", r"1-0.\overline{3}"),
    "0.12": (r"0.\overline{12}", ""),
    "-3": (r"\sqrt[3]{27}|\sqrt{-9}", r"\sqrt[3]{-27}"),
    "-2": (r"\sqrt[4]{-16}", r"\begin{vmatrix}1&2\\3&4\end{vmatrix}|\sqrt[5]{-32}"),
    "2": (r"∛9|\begin{vmatrix}1&2\\3&4\end{vmatrix}", "∛8|∜16"),
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}": (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", ""),
    "1,-1,2,-2": (r"\pm 1, 2|\pm 1, \pm 3", r"\pm1,\pm 2|±1, ±2"),
    "[1,4]": (r"[1,2)\cup(2,4]|[1,3]\cup(2,4)", r"[1,3]∪[2,4]|[2,4]\cup[1,2)"),
    "(-\\infty,\\infty)": (r"(-\infty,1)\cup(1,\infty)", r"(-\infty,1]\cup[0,\infty)"),
    "(0,2)\\cup(5,6)": ("", r"(0,\sqrt4)\cup(5,6)"),
}
