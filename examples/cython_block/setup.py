"""Cython finds fastrms/__init__.pxd in the installed package; C has to be told of its header."""

from setuptools import Extension, setup

import fastrms

setup(
    ext_modules=[
        Extension("cython_block", ["cython_block.pyx"], include_dirs=[fastrms.get_include()])
    ]
)
