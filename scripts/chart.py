"""Draws a comparison as an SVG: one panel a wire and test, one bar an implementation, the better end marked."""

from xml.sax.saxutils import escape

WIDTH, LABEL, BAR, GAP, HEAD = 860, 230, 18, 4, 26
COLOURS = ["#1f6f8b", "#c65d3b", "#7a9e4f", "#8a6fb0", "#c9a227", "#5d6d7e"]


def svg(title, panels):
    """`panels`: (heading, unit, lower is better, [(implementation, value, note)]). The whole document as text."""
    names = list(dict.fromkeys(name for _, _, _, bars in panels for name, _, _ in bars))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    parts, y = [], 40
    for heading, unit, lower, bars in panels:
        direction = "shorter is better" if lower else "longer is better"
        parts.append(f'<text x="12" y="{y + 14}" class="head">{escape(heading)}: {escape(unit)} ({direction})</text>')
        y += HEAD
        longest = max(value for _, value, _ in bars) or 1
        for name, value, note in bars:
            length = (WIDTH - LABEL - 190) * value / longest
            parts.append(f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
            parts.append(f'<rect x="{LABEL}" y="{y}" width="{max(length, 1):.1f}" height="{BAR}" fill="{colour[name]}"/>')
            parts.append(f'<text x="{LABEL + length + 6:.1f}" y="{y + 13}">{escape(note)}</text>')
            y += BAR + GAP
        y += 10
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" font-family="sans-serif" font-size="12">\n'
            "<style>.head{font-weight:bold}.title{font-size:15px;font-weight:bold}</style>\n"
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n<text x="12" y="24" class="title">{escape(title)}</text>\n'
            f"{body}\n</svg>\n")
