"""Padded lengths: few shapes, few compilations."""


def bucket_length(length: int) -> int:
    """The padded length for `length`: the next of 16, 24, 32, 48, 64, 96, 128, …

    >>> [bucket_length(n) for n in (1, 17, 40, 64, 1000)]
    [16, 24, 48, 64, 1024]
    """
    size = 16
    while size < length:
        if size + size // 2 >= length:
            return size + size // 2
        size *= 2
    return size
