"""`leantune list`: what there is to combine."""

from argparse import Namespace

from leantune.spec import plugins

FLAGS = ()


def run(arguments: Namespace) -> None:
    for kind in ("methods", "tasks", "models"):
        print(f"{kind}:")
        for name in sorted(plugins.discover(kind)):
            spec = plugins.get(kind, name).spec
            what = spec.get("slot") or spec.get("kind") or spec["family"]
            points = "".join(f" @{point}" for point in spec.get("points", {}))
            print(f"  {name + points:<34} {what:<15} {spec['summary']}")
