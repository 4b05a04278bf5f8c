"""Writes what scripts/bench measured into docs/PERFORMANCE.md: a table between its marks, and plots beside it."""

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "PERFORMANCE.md"
PLOTS = DOCS / "plots"
BAR, GAP, LEFT, WIDTH = 9, 8, 130, 760
# The longest bar stands for this many times the floor; longer ones are cut there and keep their figure.
SCALE_MAX = 3.0
# What these do not make durable, though they were asked to, is no measure in the rows that ask for it.
DO_NOT_SYNC = ("cryfs",)
ROWS_OF_SYNCS = ("fsync4k", "pgbench_tps")
COLOURS = {"kmsfs": "#2563a8", "best peer": "#b8b8b8"}


def number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def counts(name, row):
    """Whether the target is a measure in this row."""
    return not (name in DO_NOT_SYNC and row in ROWS_OF_SYNCS)


def best(row, results, names, ratio):
    """The fastest of `names` in the row, or None."""
    there = [name for name in names if row in results.get(name, {}) and counts(name, row)]
    return max(there, key=lambda name: ratio(row, results[name][row], 1.0), default=None)


def table(results, peers, ratio):
    """Rows of Markdown: a column for each target, then kmsfs against floor and best peer."""
    names, ours = list(results), results["kmsfs"]
    lines = ["| workload | " + " | ".join(names) + " | / floor | / best peer |", "|---|" + "---:|" * (len(names) + 2)]
    for row in ours:
        cells = [number(results[name][row]) if row in results[name] else "" for name in names]
        floor = results.get("floor", {}).get(row)
        peer = best(row, results, peers, ratio)
        cells.append(f"{ratio(row, ours[row], floor):.2f}" if floor else "")
        cells.append(f"{ratio(row, ours[row], results[peer][row]):.2f} {peer}" if peer else "")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results, peers, ratio, title):
    """An SVG of bars: kmsfs and the best peer of each row, in multiples of the floor (longer is faster)."""
    rows = [row for row in results["kmsfs"] if row in results.get("floor", {})]
    height = 50 + len(rows) * (2 * BAR + GAP)
    unit = (WIDTH - LEFT - 60) / SCALE_MAX
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
             f'font-size="11"><rect width="100%" height="100%" fill="#ffffff"/><text x="8" y="16">{title}: '
             "speed in multiples of the floor, longer is faster</text>"]
    for number_of, (name, colour) in enumerate(COLOURS.items()):
        at = LEFT + 110 * number_of
        parts.append(f'<rect x="{at}" y="24" width="10" height="10" fill="{colour}"/><text x="{at + 14}" y="33">{name}</text>')
    for index, row in enumerate(rows):
        top = 44 + index * (2 * BAR + GAP)
        floor = results["floor"][row]
        peer = best(row, results, peers, ratio)
        parts.append(f'<text x="8" y="{top + BAR + 4}">{row}</text>')
        for place, (name, colour) in enumerate(((("kmsfs"), COLOURS["kmsfs"]), (peer, COLOURS["best peer"]))):
            if name is None:
                continue
            times = ratio(row, results[name][row], floor)
            long = unit * min(times, SCALE_MAX)
            y = top + place * BAR
            label = f"{times:.2f}" + (f" {name}" if place else "")
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{long:.1f}" height="{BAR - 1}" fill="{colour}"/>'
                         f'<text x="{LEFT + long + 4:.1f}" y="{y + BAR - 1}" font-size="9">{label}</text>')
    line = LEFT + unit
    parts.append(f'<line x1="{line}" y1="40" x2="{line}" y2="{height - 4}" stroke="#888" stroke-dasharray="3 3"/></svg>')
    return "\n".join(parts) + "\n"


def curves(panels):
    """An SVG of panels (title, unit, points of each series) two in a row, each from zero up to its greatest value."""
    across, wide, high = 2, WIDTH // 2, 170
    rows = (len(panels) + across - 1) // across
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{rows * high + 10}" font-family="sans-serif" '
             'font-size="10"><rect width="100%" height="100%" fill="#ffffff"/>']
    for index, (title, unit, series) in enumerate(panels):
        parts += panel(title, unit, series, index % across * wide, index // across * high, wide, high)
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(title, unit, series, left, top, wide, high):
    """One panel: the axis of the numbers is of equal steps, whatever lies between two points."""
    inner_left, inner_top, inner_wide, inner_high = left + 50, top + 34, wide - 70, high - 64
    greatest = max(value for points in series.values() for _, value in points) or 1.0
    count = max(len(points) for points in series.values())
    first, last = next(iter(series.values()))[0][0], next(iter(series.values()))[-1][0]
    base = inner_top + inner_high
    parts = [f'<text x="{left + 8}" y="{top + 14}">{title}</text>',
             f'<text x="{left + 8}" y="{inner_top + 8}">{number(greatest)}</text><text x="{left + 8}" y="{base}">0 {unit}</text>',
             f'<path d="M{inner_left} {inner_top}V{base}H{inner_left + inner_wide}" fill="none" stroke="#888"/>',
             f'<text x="{inner_left}" y="{base + 14}">{first:,}</text>',
             f'<text x="{inner_left + inner_wide}" y="{base + 14}" text-anchor="end">{last:,}</text>']
    for place, (name, points) in enumerate(series.items()):
        colour = COLOURS["kmsfs"] if name == "kmsfs" else COLOURS["best peer"]
        dots = " ".join(f"{inner_left + inner_wide * n / max(1, count - 1):.1f},{base - inner_high * value / greatest:.1f}"
                        for n, (_, value) in enumerate(points))
        parts.append(f'<polyline points="{dots}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{inner_left + 60 * place}" y="{top + 28}" fill="{colour}">{name}</text>')
    return parts


def publish(key, about, results, peers, ratio):
    """Replaces the part of the page between the marks of `key` and writes the plot that it shows."""
    PLOTS.mkdir(exist_ok=True)
    (PLOTS / f"{key}.svg").write_text(plot(results, peers, ratio, f"lower directory on {about['lower']}"))
    said = (f"Linux {about['kernel']}, {about['cores']} cores ({about['processor']}), lower directory on {about['lower']}, "
            f"medians of {about['rounds']} round(s){'' if about['size'] == 'full' else ', ' + about['size'] + ' sizes'}, {about['date']}. {about['note']}".rstrip())
    inner = f"{said}\n\n{table(results, peers, ratio)}\n\n![{key}](plots/{key}.svg)"
    replace(key, inner)


def publish_plain(key, text, plot):
    """Replaces the part of the page between the marks of `key` by a text and a plot."""
    PLOTS.mkdir(exist_ok=True)
    (PLOTS / f"{key}.svg").write_text(plot)
    replace(key, f"{text}\n\n![{key}](plots/{key}.svg)")


def replace(key, inner):
    begin, end = f"<!-- bench {key} -->", f"<!-- end of bench {key} -->"
    page = PAGE.read_text()
    head, _, rest = page.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"bench: {PAGE} lacks the marks of {key}")
    PAGE.write_text(f"{head}{begin}\n{inner}\n{end}{tail}")
