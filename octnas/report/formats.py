"""Numbers and names as people read them."""

from html import escape

MINUS = "\N{MINUS SIGN}"
UNITS = ((1_000_000_000, " G"), (1_000_000, " M"), (1_000, " k"))


def format_count(count: float) -> str:
    """A count with four digits and a unit: ``3104000000`` → ``"3.104 G"``."""
    rounded = float(f"{count:.3e}")
    for size, unit in UNITS:
        if rounded >= size:
            whole_digits = len(str(int(rounded / size)))
            return f"{rounded / size:.{4 - whole_digits}f}{unit}"
    return f"{rounded:g}"


def format_macs(macs: float) -> str:
    """MACs with a unit, without the word: ``3104000000`` → ``"3.104 G"``."""
    return format_count(macs)


def format_bytes(size: float) -> str:
    """Bytes with a decimal unit: ``1048576`` → ``"1.049 MB"``."""
    text = format_count(size)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def format_percent(share: float) -> str:
    """A share between 0 and 1 in percent: ``0.4412`` → ``"44.1 %"``."""
    return f"{100 * share:.1f} %"


def format_points(points: float) -> str:
    """A difference in percentage points with its sign: ``-0.5`` → ``"−0.50"``."""
    text = f"{points:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def format_top1(percent: float, points: float | None = None) -> str:
    """Top-1 in percent with its spread over seeds, if known: ``"81.8 ± 0.4"``."""
    return f"{percent:.1f}" + ("" if points is None else f" ± {points:.1f}")


def format_loss(mean: float, std: float | None = None) -> str:
    """A loss with its spread over seeds, if known: ``"0.612 ± 0.010"``."""
    return f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}")


def format_seconds(seconds: float) -> str:
    """A duration: ``95`` → ``"1 min 35 s"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_alpha(alpha: float) -> str:
    """An octave ratio: at most three digits."""
    return f"{alpha:.3g}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: ``"1 seed"``, ``"3 seeds"``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def plot_text(text: str, limit: int | None = None) -> str:
    """Text for a plotly label, which interprets tags and entities; cut to ``limit`` characters."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return escape(text, quote=False)
