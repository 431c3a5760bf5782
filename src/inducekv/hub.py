"""Whether the Hub can be asked, found out at once: its own client tries for half a minute."""

import re
import threading

PATIENCE = 2.0
"""Seconds that the Hub has to answer in."""

_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)


def hub_name(name: str) -> bool:
    """Whether the Hub could have a model of that name."""
    return _NAME.fullmatch(name) is not None and not name.startswith((".", "-"))


def hub_answers() -> bool:
    """Whether the Hub (or the mirror that `HF_ENDPOINT` names) answers within two seconds. False when offline."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answered: list[bool] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            answered.append(True)
        except Exception:  # whatever the network, a proxy or the client has to say
            pass

    thread = threading.Thread(target=ask, daemon=True)  # names are looked up without a time limit of their own
    thread.start()
    thread.join(PATIENCE)
    return bool(answered)
