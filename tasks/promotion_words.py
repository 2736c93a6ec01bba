"""What is said about promotion, and where, for those who import nothing heavy."""

from pathlib import Path

PROMOTION_FILE = Path("reports/promotion.json")
"""The last decision in a checkout."""

NO_SERVER_TO_ASK_ON = (
    "promotion.require_approval is true, and this run has no Prefect server with a UI to ask on: its own is gone when "
    "it ends. Start one (`tuneline server`) and name it in PREFECT_API_URL; or run with `--set "
    "promotion.require_approval=false`, which moves the alias unasked, or `--set promotion=null`, which never does."
)
