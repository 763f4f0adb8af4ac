/* A CUDA driver of functions that do nothing, for measuring the host side of a launch without a GPU. It says of itself
 * what Triton asks for before it launches, and counts what it was asked to do. */

#include <stddef.h>
#include <stdint.h>

/* What stub_driver.py reads: how many launches and modules, and of the last launch its module, its stream, the number of
 * programs and the first three arguments, of 8 bytes each. */
long long stub_launches, stub_modules, stub_last, stub_launch[5];

#define DOES_NOTHING(name) int name(void) { return 0; }

DOES_NOTHING(cuInit)
DOES_NOTHING(cuModuleUnload)
DOES_NOTHING(cuCtxSetCurrent)
DOES_NOTHING(cuFuncSetCacheConfig)
DOES_NOTHING(cuFuncSetAttribute)
DOES_NOTHING(cuOccupancyMaxActiveClusters)
DOES_NOTHING(cuTensorMapEncodeTiled)
DOES_NOTHING(cuTensorMapEncodeIm2col)
DOES_NOTHING(cuCtxGetLimit)
DOES_NOTHING(cuCtxSetLimit)
DOES_NOTHING(cuDriverGetVersion) /* too old for whatever is new, if it is asked */

int cuCtxGetCurrent(void **context) {
  *context = (void *)1;
  return 0;
}

int cuCtxGetDevice(int *device) {
  *device = 0;
  return 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  (void)device;
  *context = (void *)1;
  return 0;
}

int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)attribute, (void)device;
  *value = 232448; /* bytes of shared memory, which is what is compared with */
  return 0;
}

int cuGetErrorString(int error, const char **text) {
  (void)error;
  *text = "no error";
  return 0;
}

/* The device's address of a pointer, which Triton's launcher asks for. */
int cuPointerGetAttribute(void **value, int attribute, void *pointer) {
  (void)attribute;
  *value = pointer;
  return 0;
}

int cuModuleLoadData(void **module, const void *image) {
  (void)image;
  *module = (void *)(intptr_t)++stub_modules;
  return 0;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  (void)name;
  *function = module;
  return 0;
}

int cuFuncGetAttribute(int *value, int attribute, void *function) {
  (void)function;
  *value = attribute == 0 ? 1024 : 0; /* threads a block */
  return 0;
}

int cuLaunchKernel(void *function) {
  stub_last = (intptr_t)function;
  stub_launches++;
  return 0;
}

/* Of CUDA's launch configuration, what comes before the stream is three sizes of the grid, three of a block, and the
 * bytes of shared memory. */
struct config {
  unsigned grid[3], block[3], shared;
  long long stream;
};

int cuLaunchKernelEx(const struct config *config, void *function, void **parameters, void **extra) {
  (void)extra;
  stub_launch[0] = config->stream;
  stub_launch[1] = (long long)config->grid[0] * config->grid[1] * config->grid[2];
  for (int i = 0; i < 3; i++) stub_launch[2 + i] = *(const long long *)parameters[i];
  return cuLaunchKernel(function);
}
