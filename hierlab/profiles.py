"""The profile: how large the same experiment runs. One switch, the environment variable HIERLAB_PROFILE, read here.

- ``smoke``: seconds on a CPU; checks that everything runs. Its numbers are never shown.
- ``laptop``: minutes on two cores, narrow networks. The default.
- ``gpu``: the full-size networks on the twin, under 15 minutes a table on one data-centre GPU.
- ``paper``: the published data and recipe.
"""

import os

PROFILES = ("smoke", "laptop", "gpu", "paper")
VARIABLE = "HIERLAB_PROFILE"


def current() -> str:
    """The profile in force; ValueError when the environment names an unknown one."""
    return check(os.environ.get(VARIABLE, "laptop"))


def check(profile: str) -> str:
    """``profile`` itself, or a ValueError that lists the profiles."""
    if profile not in PROFILES:
        raise ValueError(f"No profile is called '{profile}'; there are {', '.join(PROFILES)}.")
    return profile
