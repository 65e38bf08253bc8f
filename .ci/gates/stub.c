/* Preloaded into panda3d's deploy-stub, a program with a CPython inside but no `python`: replaces
 * its main by one that runs -c, -m or a file as `python` does. START is the script that starts it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>

#define PATH(first) "import sys, os, runpy; sys.flags.safe_path or sys.path.insert(0, " first "); "
static const char *const RUN[] = {
    PATH("''") "exec(compile(_given, '<string>', 'exec'))",
    PATH("os.getcwd()") "runpy._run_module_as_main(_given)",
    PATH("os.path.dirname(_given)") "runpy.run_path(_given, run_name='__main__')",
};

static int python(int argc, char **argv, char **environment) {
    PyConfig config;
    PyStatus status;
    wchar_t *given;
    int how, failed;
    (void)environment;
    unsetenv("LD_PRELOAD");
    PyConfig_InitPythonConfig(&config);
    PyConfig_SetBytesString(&config, &config.executable, getenv("START"));
    PyConfig_SetBytesArgv(&config, argc, argv);
    status = PyConfig_Read(&config);
    if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
    if (PyStatus_Exception(status)) Py_ExitStatusException(status);
    how = config.run_command ? 0 : config.run_module ? 1 : 2;
    given = how == 0 ? config.run_command : how == 1 ? config.run_module : config.run_filename;
    PyObject_SetAttrString(PyImport_AddModule("builtins"), "_given", PyUnicode_FromWideChar(given, -1));
    failed = PyRun_SimpleString(RUN[how]);
    return Py_FinalizeEx() < 0 || failed;
}

typedef int main_function(int, char **, char **);
typedef void step(void);

int __libc_start_main(main_function *main, int argc, char **argv, step *init, step *fini,
                      step *rtld_fini, void *stack_end) {
    int (*start)(main_function *, int, char **, step *, step *, step *, void *);
    *(void **)&start = dlsym(RTLD_NEXT, "__libc_start_main");
    (void)main;
    return start(python, argc, argv, init, fini, rtld_fini, stack_end);
}
