"""The extensions: the door, and the kernels once per instruction set.

FASTRMS_CFLAGS adds flags for the compiler and the linker, and the symbols stay in: `-g1` for
valgrind, `-g1 -fsanitize=address,undefined` for bounds checks (.ci/gates/sanitizers).
"""

import glob
import os
import re
import sys
import tempfile
from contextlib import suppress

if sys.implementation.name != "cpython":
    sys.exit(f"fastrms is for CPython: it has no build for {sys.implementation.name}")

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

EXTRA = os.environ.get("FASTRMS_CFLAGS", "").split()

# Kernels walk raw pointers, so Cython's index checks would cost nothing and cover only the door's
# Python objects: they stay on. C arrays are checked by the compiler's sanitizers.
DIRECTIVES = {
    "language_level": 3,
    "cdivision": True,
    "autotestdict": False,
    "freethreading_compatible": True,
}

# Numbers come before speed: no -ffast-math and no contraction, so that every instruction set gives
# the same bits. Neither errno nor traps from the math functions are read, so both may go.
COMMON = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# What CFLAGS must not bring in again. When it links with these, GCC adds start-up code, too, that
# has the whole process flush subnormal numbers.
INEXACT = r"-Ofast|-f(fast|unsafe|associative|reciprocal|finite)-math.*|-fno-signed-zeros|-mdaz-ftz"
# x86-64-v3 and -v4 by what they consist of, and v3's prefetch for writing: older compilers have no
# name for them, zig another one.
V3 = ["-mavx2", "-mbmi", "-mbmi2", "-mf16c", "-mfma", "-mlzcnt", "-mmovbe", "-mprfchw"]
V4 = [*V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]
ISA_FLAGS = {"baseline": [], "v3": V3, "v4": V4}
LINKING = ["-Wl,-z,relro,-z,now", *([] if EXTRA else ["-Wl,-s"])]
# Windows aligns a stack to 16 bytes, and GCC moves vectors there as if to 32 or 64 (its bug 54412).
MINGW = ["-Wa,-muse-unaligned-vector-move"]
# Where Windows has WaitOnAddress: mingw-w64's name for it, and zig's.
WAITING = ["-lsynchronization", "-lapi-ms-win-core-synch-l1-2-0"]
# The C interface: what others compile against, and the door too.
CALLERS = ["fastrms/__init__.pxd", "fastrms/include/fastrms.h"]


def extension(source, **more):
    return Extension(
        f"fastrms.{os.path.splitext(os.path.basename(source))[0]}",
        [source],
        depends=[*glob.glob("src/*/*.p*"), *glob.glob("src/*/*.h"), *CALLERS],
        include_dirs=["src", "fastrms/include"],
        **more,
    )


def extensions():
    macros = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
    door = extension("src/door/_core.pyx", define_macros=macros)
    door.include_dirs.append(np.get_include())
    handlers = extension("src/jax/_jax.c")  # over fastrms.h alone: building needs no jaxlib
    return [door, handlers, *(extension(f"src/kernels/_kernels_{isa}.pyx") for isa in ISA_FLAGS)]


class BuildExtensions(build_ext):
    """Give each extension its flags, as far as this compiler takes them."""

    def initialize_options(self):
        super().initialize_options()
        if os.name == "nt" and "CC" in os.environ:  # which setuptools reads for this compiler alone
            self.compiler = "mingw32"

    def build_extensions(self):
        # Python's own flags may hold a path of this machine (pyenv's do), where no library is to
        # be looked for. setuptools' for Windows have the compiler link, of which clang complains.
        for tool, unwanted in (("linker_so", ".*-rpath.*"), ("compiler_so", ".*-shared.*")):
            unwanted = re.compile(f"{unwanted}|{INEXACT}")
            flags = getattr(self.compiler, tool, [])
            setattr(self.compiler, tool, [flag for flag in flags if not unwanted.fullmatch(flag)])
        # Where the user's own CFLAGS have the compiler complain in any case, only errors count.
        self.strict = ["-Werror"] if self.compiles(["-Werror"]) else []
        windows = self.get_ext_filename("").endswith(".pyd")  # to be run there, not compiled
        common = [*COMMON, *(MINGW if windows else [])]
        common = [flag for flag in common if self.takes([flag])]
        linking = [*LINKING, *(["-static-libgcc"] if windows else [])]
        linking = [flag for flag in linking if self.takes([], [flag])]
        threads = WAITING if windows else ["-pthread"]
        kept = []
        for ext in self.extensions:
            isa = re.sub("fastrms._(kernels_)?", "", ext.name)
            if not self.takes(ISA_FLAGS.get(isa, [])):
                # Another compiler's, of an earlier build, would be taken for this one's.
                with suppress(FileNotFoundError):
                    os.remove(self.get_ext_fullpath(ext.name))
                continue
            if isa == "core":
                ext.extra_link_args += [flag for flag in threads if self.takes([], [flag])]
            flags = [*common, *ISA_FLAGS.get(isa, []), *EXTRA]
            ext.extra_compile_args += flags
            ext.extra_link_args += [*linking, *EXTRA]
            ext.define_macros.append(("FASTRMS_FLAGS", f'"{" ".join(flags)}"'))
            if windows:  # before 3.14 Python's headers ask MSVC alone how wide a pointer is
                ext.define_macros.append(("MS_WIN64", ""))
            kept.append(ext)
        self.extensions[:] = kept
        self.force = True  # setuptools compares dates, and the flags may be others
        super().build_extensions()

    def takes(self, compiling, linking=()):
        """Whether the compiler, and the linker, take these flags without complaint.

        No flags are taken: a compiler that is not there, or that fails, ends the build itself.
        """
        if not compiling and not linking:
            return True
        if self.compiler.compiler_type == "msvc":  # it knows none, and goes on without
            return False
        return self.compiles([*compiling, *self.strict], linking)

    def compiles(self, compiling, linking=()):
        """Whether a small source compiles with these flags, and links where there are some."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "probe.c")
            with open(path, "w") as file:
                file.write("int probe(void);\nint probe(void) { return 0; }\n")
            library = os.path.join(folder, "probe.so")
            try:
                made = self.compiler.compile([path], output_dir=folder, extra_postargs=compiling)
                if linking:
                    self.compiler.link_shared_object(made, library, extra_postargs=list(linking))
            except Exception:
                return False
        return True


setup(
    ext_modules=cythonize(
        extensions(), compiler_directives=DIRECTIVES, include_path=["src", "."], build_dir="build"
    ),
    cmdclass={"build_ext": BuildExtensions},
)
