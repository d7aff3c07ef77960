"""The parts of report.py: what it reads, the numbers with their intervals, the answer in words, the sections, the page."""
