"""Prints the n-th block of shell commands of the README."""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
print(re.findall(r"^```bash\n(.*?)^```", README.read_text(), re.M | re.S)[int(sys.argv[1]) - 1])
