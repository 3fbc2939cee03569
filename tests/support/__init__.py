"""What tests of more than one file use. Data is in ../data."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
DATA = PROJECT / "tests/data"
