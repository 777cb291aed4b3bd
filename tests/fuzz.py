"""Damage at random, for files of every kind."""

import random

SPECIAL = [b'"', b"\0", b"\r", b",", b"\n", b"PK\1\2", b"../", b"\xff", bytes(512)]


def damage(content: bytes, generator: random.Random) -> bytes:
    """Returns the content with bits turned, pieces replaced, cut out, put in or repeated, or with its end missing."""
    damaged = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 5, 20, 50))):
        at, length = generator.randrange(len(damaged) + 1), generator.choice((1, 2, 4, 40, 500))
        kind = generator.randrange(6)
        if kind == 0 and at < len(damaged):
            damaged[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del damaged[at : at + length]
        elif kind == 2:
            damaged[at:at] = generator.randbytes(length)
        elif kind == 3:
            damaged[at : at + length] = generator.randbytes(length)
        elif kind == 4:
            damaged[at:at] = generator.choice(SPECIAL)
        elif generator.random() < 0.2:
            del damaged[at:]
    return bytes(damaged)
