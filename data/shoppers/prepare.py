"""Extract online_shoppers_intention.csv from the archive of the UCI repository, and check it.

python data/shoppers/prepare.py --archive FILE.zip
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tables import main

if __name__ == "__main__":
    main(Path(__file__).parent, "online_shoppers_intention.csv", target="Revenue", rows=12_330, columns=18, rarest=1_908)
