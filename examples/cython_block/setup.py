"""Build the example: Cython finds fastrms/__init__.pxd, C needs the folder of fastrms.h."""

from setuptools import Extension, setup

import fastrms

setup(
    ext_modules=[
        Extension("cython_block", ["cython_block.pyx"], include_dirs=[fastrms.get_include()])
    ]
)
