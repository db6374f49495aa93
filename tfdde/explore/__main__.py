"""Write a page that runs a model in the browser.

python -m tfdde.explore runs/checkerboard --output page
python -m http.server --directory page
"""

import argparse
import sys
from pathlib import Path

from tfdde.explore.page import write_page
from tfdde.runs.command_line import print_any_character
from tfdde.serving.verify import ExportError


def main(argv: list[str] | None = None) -> int:
    """Run the command. Exit code: 0; 1 if the export fails; 2 for bad input."""
    print_any_character()
    parser = argparse.ArgumentParser(prog="python -m tfdde.explore", description=main.__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder with density.keras")
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True)
    parser.add_argument(
        "--litert",
        metavar="DIR",
        type=Path,
        help="node_modules folder with @litertjs/core and papaparse (default: npm fetches them)",
    )
    args = parser.parse_args(argv)
    try:
        path = write_page(args.run, args.output, args.litert)
    except (OSError, ValueError, ImportError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ExportError) else 2
    print(f"Wrote {path}; to see it, run: python -m http.server --directory {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
