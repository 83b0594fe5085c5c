/* Registers a library in a runtime that has version 1 of the interface only, and prints the error that this gives. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static char text[256];

static void* create_status(int code, const char* message) {
  (void)code;
  strncpy(text, message, sizeof text - 1);
  return text;
}

static const void* api[1] = {(const void*)create_status};

static const void* get_api(uint32_t version) { return version == 1 ? api : NULL; }

static const char* get_version(void) { return "1.16.3"; }

static const struct {
  const void* (*get_api)(uint32_t);
  const char* (*get_version)(void);
} base = {get_api, get_version};

int main(int count, char** arguments) {
  void* library = count == 2 ? dlopen(arguments[1], RTLD_NOW) : NULL;
  if (library == NULL) return 2;
  void* (*register_ops)(void*, const void*) = (void* (*)(void*, const void*))dlsym(library, "RegisterCustomOps");
  const char* status = register_ops(NULL, &base);
  puts(status == NULL ? "success" : status);
  return 0;
}
