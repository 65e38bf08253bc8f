/* The lines of CPython's PC/pyconfig.h that an extension for 64-bit Windows needs; the others are
 * for building Python itself. */
#ifndef Py_CONFIG_H
#define Py_CONFIG_H

#include <stdio.h>

#define MS_WIN32
#define MS_WINDOWS
#define NT_THREADS
#define WITH_THREAD
#define Py_ENABLE_SHARED 1
#define HAVE_DECLSPEC_DLL

#define SIZEOF_SHORT 2
#define SIZEOF_WCHAR_T 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_FLOAT 4
#define SIZEOF_LONG_LONG 8
#ifdef MS_WIN64 /* before 3.14 CPython's file sets it for MSVC alone, so setup.py does for others */
#define SIZEOF_SIZE_T 8
#define SIZEOF_VOID_P 8
#define SIZEOF_TIME_T 8
#endif
#define SIZEOF_DOUBLE 8

#define WITH_DOC_STRINGS 1

#endif
