"""Padded lengths and numbers of rows: few shapes, few compilations."""


def bucket_length(length: int) -> int:
    """The padded length for `length`: the next of 12, 16, 24, 32, 48, 64, 96, 128, …

    >>> [bucket_length(n) for n in (1, 13, 17, 40, 64, 1000)]
    [12, 16, 24, 48, 64, 1024]
    """
    if length <= 12:
        return 12
    size = 16
    while size < length:
        if size + size // 2 >= length:
            return size + size // 2
        size *= 2
    return size


def bucket_rows(rows: int, divisor: int) -> int:
    """The next power of two that is a multiple of `divisor`, or the next multiple where it has none.

    >>> [bucket_rows(5, 1), bucket_rows(5, 4), bucket_rows(9, 6)]
    [8, 8, 18]
    """
    size = 1 << (rows - 1).bit_length()
    return -(-size // divisor) * divisor
