"""How images are seen: the size, the interpolation and the normalisation that a network expects."""

from dataclasses import asdict, dataclass, fields

Channels = tuple[float, float, float]  # red, green, blue, of levels as fractions


@dataclass(frozen=True)
class Preprocessing:
    """What a network or a config says of it; None where it says nothing."""

    image_size: int | None = None  # pixels a side
    mean: Channels | None = None
    std: Channels | None = None
    interpolation: str | None = None  # of resizing: bilinear or bicubic

    def completed(self, other: "Preprocessing") -> "Preprocessing":
        """This, and what `other` knows beyond it.

        >>> Preprocessing(image_size=64).completed(Preprocessing(224, interpolation="bicubic"))
        Preprocessing(image_size=64, mean=None, std=None, interpolation='bicubic')
        """
        given, found = asdict(self), asdict(other)
        return Preprocessing(**{name: found[name] if value is None else value for name, value in given.items()})


def agreed(several: list[Preprocessing]) -> Preprocessing:
    """What those of several networks that know of a value have in common.

    >>> agreed([Preprocessing(64, interpolation="bicubic"), Preprocessing(64, interpolation="bilinear")])
    Preprocessing(image_size=64, mean=None, std=None, interpolation=None)
    >>> agreed([Preprocessing(64), Preprocessing()]).image_size
    64
    """
    common = {}
    for name in (field.name for field in fields(Preprocessing)):
        values = {getattr(one, name) for one in several} - {None}
        common[name] = values.pop() if len(values) == 1 else None
    return Preprocessing(**common)
