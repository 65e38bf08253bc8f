"""Name to PyInstaller what it cannot find in a compiled module: the kernels, and a header."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

hiddenimports = collect_submodules("fastrms", lambda name: name.startswith("fastrms._kernels_"))
datas = collect_data_files("fastrms", subdir="include")  # fastrms.ctypes reads it
