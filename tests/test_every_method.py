"""What every method must pass, found in `methods/` and in the folders of LEANTUNE_PLUGINS:
`leantune.testing` says."""

from collections.abc import Callable
from typing import Any

from leantune.spec import plugins
from leantune.testing import Subject, parametrize_with_checks

SETTINGS: dict[
    str, dict[str, Any]
] = {  # matrices of width 16 and forty steps need other values than real ones
    "softlms": {"multiple": 1, "lr": 1e-2, "alpha_reach": 4.0, "values_lr": 1e-3, "strength": 10.0},
    "sleep": {"seconds": 0.001},
    "lomo": {"lr_scale": 50.0},
    "qlora": {"compute": "fp32"},  # the exported maps are multiplied in fp32
}
METHODS = {
    name: {f"{name}.{key}": value for key, value in SETTINGS.get(name, {}).items()}
    for name in sorted(plugins.discover("methods"))
}


@parametrize_with_checks(METHODS)
def test_every_method(method: Subject, check: Callable[[Subject], None]) -> None:
    check(method)
