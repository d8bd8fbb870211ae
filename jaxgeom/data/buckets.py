"""Padded lengths: few shapes, few compilations."""


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
