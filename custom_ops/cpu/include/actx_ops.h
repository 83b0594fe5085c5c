/* The operators of the domain actx as plain C functions: what a program needs that has arrays and no ONNX Runtime.
 *
 * Functions return 0, or 1 with a text in `error` (always terminated, cut to `error_size`). Types are the numbers of ONNX's
 * TensorProto.DataType: float 1, uint8 2, int8 3, float16 10, bfloat16 16. Nothing here starts a thread; an op may be run by
 * several threads at once.
 */
#ifndef ACTX_OPS_H
#define ACTX_OPS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ACTX_EXPORT __attribute__((visibility("default")))
#else
#define ACTX_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this interface. A caller refuses a library that gives another number. */
#define ACTX_ABI_VERSION 1

typedef struct ActxOp ActxOp;

/* One attribute of a node: exactly one of the pointers is set, to `count` values (a text has its length as count). */
typedef struct ActxAttribute {
  const char* name;
  const float* floats;
  const int64_t* ints;
  const char* text;
  size_t count;
} ActxAttribute;

/* A dense row-major tensor; of an absent optional input the type is 0. */
typedef struct ActxTensor {
  int32_t type;
  size_t rank;
  const int64_t* shape;
  void* data;
} ActxTensor;

ACTX_EXPORT int32_t actx_abi_version(void);

/* Names of the instruction sets that can run here, best first, separated by spaces. */
ACTX_EXPORT const char* actx_isas(void);

/* The rows of the kernel table of an instruction set, one line each: "kernel op"; NULL where it cannot run here. */
ACTX_EXPORT const char* actx_kernels(const char* isa);

/* Create an operator. An attribute that it does not have, by its name and type, is an error. `isa` NULL takes the best (or what
   ACTX_ISA names), `kernel` NULL the best row that fits. */
ACTX_EXPORT int actx_op_create(const char* op_type, const ActxAttribute* attributes, size_t attribute_count, const char* isa,
                               const char* kernel, ActxOp** op, char* error, size_t error_size);

ACTX_EXPORT void actx_op_destroy(ActxOp* op);

/* Name of the kernel row that the operator runs. */
ACTX_EXPORT const char* actx_op_kernel(const ActxOp* op);

/* Type, rank and shape of the output for these inputs; `shape` has room for `shape_capacity` numbers. */
ACTX_EXPORT int actx_op_infer(const ActxOp* op, const ActxTensor* inputs, size_t input_count, int32_t* type, size_t* rank,
                              int64_t* shape, size_t shape_capacity, char* error, size_t error_size);

/* Run it on the calling thread. `output` has the inferred type and shape and overlaps no input. */
ACTX_EXPORT int actx_op_run(const ActxOp* op, const ActxTensor* inputs, size_t input_count, const ActxTensor* output,
                            char* error, size_t error_size);

#ifdef __cplusplus
}
#endif
#endif
