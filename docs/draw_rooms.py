"""Draw the rooms of the package and what they import: ``python docs/draw_rooms.py``.

Rooms are the folders and single modules of ``tfdde/``. A room stands above all rooms that it
imports; arrows that follow from others are left out.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/images/rooms.svg"
EARLIER_NAMES = {"convnets", "starts"}  # which only import today's
WIDTH, BOX, HEIGHT, FLOOR = 800, 112, 34, 84


def imports():
    """The rooms that each room imports."""
    package = ROOT / "tfdde"
    paths = {path: path.relative_to(package).parts[0].removesuffix(".py") for path in
             package.rglob("*.py")}  # fmt: skip
    rooms = {room: set() for room in paths.values() if not room.startswith("_")}
    for path, room in paths.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if room in rooms and isinstance(node, ast.ImportFrom) and node.module:
                first, *rest = node.module.split(".")
                names = rest[:1] or [alias.name for alias in node.names]
                rooms[room] |= {n for n in names if first == "tfdde" and n in rooms} - {room}
    return {room: used - EARLIER_NAMES for room, used in rooms.items() if room not in EARLIER_NAMES}


def reach(rooms, room):
    """All rooms that a room imports, directly or through others."""
    return rooms[room] | {far for near in rooms[room] for far in reach(rooms, near)}


def floors(rooms):
    """Rooms by the length of the longest chain of imports below them, from the ground up."""
    height = {}
    for room in sorted(rooms, key=lambda room: len(reach(rooms, room))):
        height[room] = 1 + max((height[used] for used in rooms[room]), default=-1)
    return [[r for r in sorted(rooms) if height[r] == k] for k in range(max(height.values()) + 1)]


def picture():
    """The drawing as SVG."""
    rooms = imports()
    levels = floors(rooms)
    total = FLOOR * len(levels)
    place = {}
    for k, level in enumerate(levels):
        for i, room in enumerate(level):
            # Every other floor a little to the left: no arrow then hides behind a room.
            x = WIDTH * (i + 0.5 + (-0.1 if k % 2 else 0.1)) / len(level)
            place[room] = x, total - FLOOR * (k + 0.5)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" '
        'font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#777"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{total}" fill="#fff"/>',
    ]
    for room, used in sorted(rooms.items()):
        shown = used - {far for near in used for far in reach(rooms, near)}
        for other in sorted(shown):
            (x0, y0), (x1, y1) = place[room], place[other]
            svg.append(
                f'<line x1="{x0:.0f}" y1="{y0 + HEIGHT / 2:.0f}" x2="{x1:.0f}" '
                f'y2="{y1 - HEIGHT / 2:.0f}" stroke="#777" marker-end="url(#tip)"/>'
            )
    for room, (x, y) in sorted(place.items()):
        folder = (ROOT / "tfdde" / room).is_dir()
        fill = "#dbe9ff" if folder else "#f3f3f3"
        svg.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{BOX}" '
            f'height="{HEIGHT}" rx="5" fill="{fill}" stroke="#345"/>'
        )
        name = room + "/" if folder else room + ".py"
        svg.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{name}</text>')
    return "\n".join([*svg, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(picture())
    print(f"Wrote {PICTURE}")
