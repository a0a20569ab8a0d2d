"""Generates and compiles the Python messages of ROS packages from .msg files, with pip's ROS wheels, gcc and g++.

A ROS 2 distribution does this with CMake at build time; a machine that has only the wheels runs this module once
(bev_perception.ros.interfaces calls it) as a process of its own, because the generators print and warn:

    python -m bev_perception.ros.rosidl_build DESTINATION PACKAGE=DIRECTORY [PACKAGE=DIRECTORY ...]

DIRECTORY holds the .msg files of PACKAGE, which may refer to each other and to the messages of installed wheels.
DESTINATION must be on sys.path for the result to be importable. The steps are those of rosidl_generate_interfaces
(ROS 2 documentation, "rosidl"): definitions, type hashes, C structures, type supports, Python classes, libraries.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PREFIX = Path(sys.prefix)

#: the type supports that rmw_fastrtps_cpp asks for: one to serialise, one to describe the type to other participants
TYPE_SUPPORTS = ["rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"]


class InterfaceBuildError(OSError):
    """The messages could not be generated; the text says what is missing and how to get it."""


def check_tools() -> None:
    """Raise InterfaceBuildError unless the generators, a C and C++ compiler and Python's headers are present."""
    if not (PREFIX / "share" / "rosidl_generator_py" / "resource").is_dir():
        raise InterfaceBuildError(
            f"there are no ROS message generators in {PREFIX}; either build this package with colcon and source "
            "install/setup.bash, or make a venv with: pip install -r requirements/bare.txt"
        )
    missing = [tool for tool in ("gcc", "g++") if shutil.which(tool) is None]
    if missing:
        raise InterfaceBuildError(
            f"the ROS messages have to be compiled once, but {' and '.join(missing)} cannot be found; "
            "install a compiler (Debian, Ubuntu: apt install g++ python3-dev)"
        )
    if not (_python_headers() / "Python.h").is_file():
        raise InterfaceBuildError(
            f"the ROS messages have to be compiled once, but {_python_headers()}/Python.h does not exist; "
            "install Python's headers (Debian, Ubuntu: apt install python3-dev)"
        )


def build_package(package: str, definitions: Path, destination: Path) -> None:
    """Generate and compile one package into destination/<package>.

    definitions: the directory of its .msg files.  No intermediate file is left behind.
    Raises InterfaceBuildError with the compiler's output if a step fails.
    """
    with tempfile.TemporaryDirectory(prefix=f"{package}-", dir=destination) as scratch:
        work = Path(scratch)
        generate_sources(package, definitions, work)
        library = destination / package
        shutil.copytree(work / "python" / "msg", library / "msg", ignore=shutil.ignore_patterns("*.c"))
        objects = compile_sources(package, work)
        link_libraries(package, required_packages(definitions, package), objects, library)


def required_packages(definitions: Path, package: str) -> list[str]:
    """Return the other packages whose messages the .msg files in `definitions` use."""
    text = "\n".join(path.read_text() for path in definitions.glob("*.msg"))
    return sorted(set(re.findall(r"^([a-z][a-z0-9_]*)/[A-Z]", text, re.MULTILINE)) - {package})


def generate_sources(package: str, definitions: Path, work: Path) -> None:
    """Write the sources of `package` below `work`.

    work/include/<package>: C structures and type supports.  work/introspection/<package>: the introspection type
    support, apart because its files have the same names.  work/python: Python classes and their C conversions.
    """
    # The generators exist on the bare machine only.
    from rosidl_adapter.msg import convert_msg_to_idl
    from rosidl_generator_c import generate_c
    from rosidl_generator_py.generate_py_impl import generate_py
    from rosidl_generator_type_description import generate_type_hash
    from rosidl_typesupport_c import generate_c as generate_dispatch
    from rosidl_typesupport_fastrtps_c import generate_typesupport_fastrtps_c
    from rosidl_typesupport_introspection_c import generate_c as generate_introspection

    share = work / "share"
    shutil.copytree(definitions, share / "msg")
    names = sorted(path.stem for path in definitions.glob("*.msg"))
    for name in names:
        convert_msg_to_idl(share, package, Path("msg", f"{name}.msg"), share / "msg")

    def arguments(generator: str, output: Path) -> str:
        (output / "msg").mkdir(parents=True, exist_ok=True)
        path = work / f"{generator}.json"
        path.write_text(json.dumps(_generator_arguments(package, names, share, output, generator)))
        return str(path)

    include, introspection, python = work / "include" / package, work / "introspection" / package, work / "python"
    generate_type_hash(arguments("rosidl_generator_type_description", share))
    generate_c(arguments("rosidl_generator_c", include))
    generate_typesupport_fastrtps_c(arguments("rosidl_typesupport_fastrtps_c", include))
    generate_introspection(arguments("rosidl_typesupport_introspection_c", introspection))
    generate_dispatch(arguments("rosidl_typesupport_c", include), TYPE_SUPPORTS)
    generate_py(arguments("rosidl_generator_py", python), ["rosidl_typesupport_c"])
    for generator in ("rosidl_generator_c", *TYPE_SUPPORTS):
        _write_visibility_header(generator, package, include)


def _generator_arguments(
    package: str, names: Sequence[str], share: Path, output: Path, generator: str
) -> dict[str, str | list[str]]:
    installed = (path.parent for path in (PREFIX / "share").glob("*/msg"))
    return {
        "package_name": package,
        "output_dir": str(output),
        "template_dir": str(PREFIX / "share" / generator / "resource"),
        "idl_tuples": [f"{share}:msg/{name}.idl" for name in names],
        "ros_interface_files": [str(share / "msg" / f"{name}.msg") for name in names],
        "type_description_tuples": [f"msg/{name}.idl:{share}/msg/{name}.json" for name in names],
        "include_paths": [f"{path.name}:{path}" for path in installed],
        "ros_interface_dependencies": [],
        "target_dependencies": [],
    }


def _write_visibility_header(generator: str, package: str, include: Path) -> None:
    """CMake would fill in this header; it decides which symbols a library exports."""
    template = PREFIX / "share" / generator / "resource" / f"{generator}__visibility_control.h.in"
    text = template.read_text().replace("@PROJECT_NAME@", package).replace("@PROJECT_NAME_UPPER@", package.upper())
    (include / "msg" / template.name.removesuffix(".in")).write_text(text)


def compile_sources(package: str, work: Path) -> dict[str, list[Path]]:
    """Compile all sources below `work`; return the object files of each library that link_libraries makes."""
    python = sorted((work / "python").rglob("*.c"))
    entry_points = [path for path in python if ".ep." in path.name]
    sources = {
        "fastrtps": sorted((work / "include").rglob("*.c*")) + [path for path in python if path not in entry_points],
        "introspection": sorted((work / "introspection").rglob("*.c")),
        "extension": entry_points,
    }
    flags = ["-O1", "-fPIC", "-w", "-DNDEBUG", f'-DROS_PACKAGE_NAME="{package}"', *_include_flags(work)]
    objects: dict[str, list[Path]] = {}
    commands = []
    for library, paths in sources.items():
        objects[library] = [work / f"{library}{i}.o" for i in range(len(paths))]
        for source, target in zip(paths, objects[library], strict=True):
            compiler = ["gcc", "-std=gnu11"] if source.suffix == ".c" else ["g++", "-std=c++17"]
            commands.append([*compiler, *flags, "-c", str(source), "-o", str(target)])
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        list(threads.map(_run, commands))
    return objects


def _include_flags(work: Path) -> list[str]:
    import numpy as np

    installed = PREFIX / "include"  # most packages have a folder of their own in it, some lie directly in it
    directories = [work / "include", work / "introspection", *sorted(installed.iterdir()), installed]
    directories += [_python_headers(), Path(np.get_include())]
    return [f"-I{directory}" for directory in directories]


def _python_headers() -> Path:
    return Path(sysconfig.get_path("include"))


def link_libraries(package: str, required: Sequence[str], objects: dict[str, list[Path]], output: Path) -> None:
    """Link two shared libraries and the Python extension into `output`.

    The dispatching type support opens the two libraries by these very names. They hold no path of this venv: its
    libraries are found through LD_LIBRARY_PATH, which the ROS wheels set for every interpreter.
    """
    fastrtps, introspection = (f"{package}__{support}" for support in TYPE_SUPPORTS)
    search = [f"-L{PREFIX / 'lib'}", f"-L{output}", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]

    def link(target: str, kind: str, libraries: Sequence[str]) -> None:
        files = map(str, objects[kind])
        names = (f"-l{name}" for name in libraries)
        _run(["g++", "-shared", f"-Wl,-soname,{target}", "-o", str(output / target), *files, *search, *names])

    generated = ("rosidl_generator_c", "rosidl_generator_py", "rosidl_typesupport_fastrtps_c")
    runtime = ["rosidl_runtime_c", "rosidl_typesupport_c", "rosidl_typesupport_fastrtps_c"]
    runtime += ["rosidl_typesupport_fastrtps_cpp", "rcutils", "fastcdr"]
    link(f"lib{fastrtps}.so", "fastrtps", [f"{other}__{part}" for other in required for part in generated] + runtime)
    described = [f"{other}__rosidl_typesupport_introspection_c" for other in required]
    link(f"lib{introspection}.so", "introspection", [fastrtps, *described, "rosidl_typesupport_introspection_c"])
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    link(f"{package}_s__rosidl_typesupport_c{suffix}", "extension", [fastrtps, introspection])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise InterfaceBuildError(f"{command[0]} failed, status {done.returncode}:\n{done.stdout}")


if __name__ == "__main__":
    for pair in sys.argv[2:]:
        name, _, directory = pair.partition("=")
        build_package(name, Path(directory).resolve(), Path(sys.argv[1]).resolve())
