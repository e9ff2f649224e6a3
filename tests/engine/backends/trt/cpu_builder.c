/* Lets the Python bindings of TensorRT 11 drive TensorRT-RTX, which builds without a GPU.
 *
 * Compiled three times, with -DBUILDER, -DPARSER and -DPLUGIN, into the libraries that the bindings
 * are linked with.  Each entry point is handed on to the TensorRT-RTX library of the same role
 * (TARGET, a file name found through LD_LIBRARY_PATH), with that library's own version number in
 * the place of the bindings': it accepts no other. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef PLUGIN

int initLibNvInferPlugins(void *logger, const char *name_space) { return 1; }

#else

static void *entry(const char *name) {
  static void *library;
  if (!library) library = dlopen(TARGET, RTLD_NOW | RTLD_GLOBAL);
  void *address = library ? dlsym(library, name) : NULL;
  if (!address) {
    fprintf(stderr, "cpu_builder: %s: %s\n", name, dlerror());
    abort();
  }
  return address;
}

#define VERSION (((int (*)(void))entry(VERSION_OF))())
#define WITH_ONE(name, T) \
  void *name(T a, int version) { return ((void *(*)(T, int))entry(#name))(a, VERSION); }
#define WITH_TWO(name, T, U) \
  void *name(T a, U b, int version) { return ((void *(*)(T, U, int))entry(#name))(a, b, VERSION); }

#ifdef BUILDER
#define VERSION_OF "getInferLibVersion"
WITH_ONE(createInferBuilder_INTERNAL, void *)
WITH_ONE(createInferRuntime_INTERNAL, void *)
WITH_TWO(createInferRefitter_INTERNAL, void *, void *)
void *getPluginRegistry(void) { return ((void *(*)(void))entry("getPluginRegistry"))(); }
void *getBuilderPluginRegistry(int capability) {
  return ((void *(*)(int))entry("getBuilderPluginRegistry"))(capability);
}
#endif

#ifdef PARSER
#define VERSION_OF "getNvOnnxParserVersion"
WITH_TWO(createNvOnnxParser_INTERNAL, void *, void *)
WITH_TWO(createNvOnnxParserRefitter_INTERNAL, void *, void *)
int getNvOnnxParserVersion(void) { return VERSION; }
#endif

#endif
