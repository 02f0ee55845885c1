"""Entry by file path, in whatever interpreter a kernel has: `python [flags] run.py ROLE DESCRIPTOR PADDING`.

The kernel's interpreter need not have this package, so it is loaded from beside this file and sys.path is left as it would be
without it. `PADDING` is room for the process title that a kernel writes over its argv.
"""

import importlib.util
import os
import sys


def _load_package(directory: str) -> None:
    spec = importlib.util.spec_from_file_location(
        "eg_launcher", os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"No package in {directory}")
    package = importlib.util.module_from_spec(spec)
    sys.modules["eg_launcher"] = package
    spec.loader.exec_module(package)


def main() -> None:
    """Become a zygote, a nursery or a kernel."""
    directory = os.path.dirname(os.path.abspath(__file__))
    # `python FILE` puts FILE's directory first; with -I or -P it does not.
    if sys.path and os.path.abspath(sys.path[0]) == directory:
        del sys.path[0]
    role, descriptor = sys.argv[1], int(sys.argv[2])
    _load_package(directory)
    if role == "kernel":
        from eg_launcher.inside import run

        run(descriptor)
    else:
        from eg_launcher.zygote import serve

        serve(role, descriptor)


if __name__ == "__main__":
    main()
