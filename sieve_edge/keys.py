"""Checks of addresses and of names of keys, so that no key is written down or shown."""

import re
import urllib.parse

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def checked_url(value: str) -> str:
    """Check the address of an endpoint; it is written down, so that it may hold no key.

    Args:
        value: Address.

    Returns:
        The same.

    Raises:
        ValueError: If it is no address, or holds a user or a query.
    """
    parts = urllib.parse.urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and name a host")
    if parts.username or parts.password or parts.query:
        raise ValueError(f"the address of {parts.hostname} holds a user or a query; keys go into the environment")
    return value


def checked_variable(value: str) -> str:
    """Check the name of an environment variable that holds a key, in place of which a key may have been pasted.

    Args:
        value: Name.

    Returns:
        The same.

    Raises:
        ValueError: If it is none; the value is not repeated.
    """
    if _NAME.fullmatch(value) is None:
        raise ValueError("must be the name of an environment variable, such as OPENAI_API_KEY, not the key itself")
    return value


def shown_variable(value: str, otherwise: str) -> str:
    """Name a variable to people, unless it may be a key.

    Args:
        value: What was given as its name.
        otherwise: What to call it if it has small letters, as keys have and names of variables seldom do.

    Returns:
        The name, or the other words.
    """
    return value if value == value.upper() else otherwise
