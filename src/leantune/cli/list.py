"""`leantune list`: what there is to combine."""

from leantune.cli.flags import Arguments
from leantune.spec import plugins

FLAGS = ()


def run(arguments: Arguments) -> None:
    for kind in ("methods", "tasks", "models"):
        print(f"{kind}:")
        for name in sorted(plugins.discover(kind)):
            spec = plugins.get(kind, name).spec
            what = getattr(spec, {"methods": "slot", "tasks": "kind", "models": "family"}[kind])
            points = "".join(f" @{point}" for point in getattr(spec, "points", ()))
            terms = f" ({spec.license})" if getattr(spec, "license", None) else ""
            print(f"  {name + points:<34} {what:<15} {spec.summary}{terms}")
