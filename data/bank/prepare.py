"""Extract bank-full.csv from the archive of the UCI repository, and check it.

python data/bank/prepare.py --archive FILE.zip
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tables import main

if __name__ == "__main__":
    main(Path(__file__).parent, "bank-full.csv", target="y", rows=45_211, columns=17, rarest=5_289)
