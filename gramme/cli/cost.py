"""What an answer cost as one line: its parts are what the machine did for it, and add up."""
from gramme.config import Price
from gramme.plan.receipts import Power, receipt, said
from gramme.plan.units import ms
from gramme.request import Spent


def line(spent: Spent, power: Power, price: Price | None) -> str:
    *entries, total = receipt(spent, power, price)
    parts = " + ".join(f"{e.kind} {ms(e.seconds)} for {e.tokens} tokens" for e in entries if e.tokens)
    at = "" if power.watts is None else f" at {power.watts:.1f} W, {power.source}"
    return f"cost {said(total)}{at} = {parts}"
