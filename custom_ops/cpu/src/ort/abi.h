// What a library of custom ops needs of ONNX Runtime's C interface (onnxruntime_c_api.h), which its Python packages do
// not ship. Names are ONNX Runtime's without the prefix Ort.
//
// That interface is only ever appended to: the position of a function in OrtApi never changes, nor does the layout of
// OrtCustomOp for the `version` that it states. So one library serves every runtime from the version that it asks for on.
// tests/custom_ops/cpu/abi_test.cc compares this file with a real header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace actx::ort {

constexpr std::uint32_t kApiVersion = 18;
// From this version on, the sizes of a tensor can be read in place.
constexpr std::uint32_t kShapeReferenceVersion = 24;

struct Allocator;
struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct OpAttr;
struct SessionOptions;
struct ShapeInferContext;
struct Status;
struct TensorTypeAndShapeInfo;
struct Value;
struct CustomOp;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kUndefined = 0 };  // the values of TensorProto.DataType
enum MemType : int { kMemTypeDefault = 0 };
enum OpAttrType : int { kOpAttrInt = 1 };
enum InputOutputCharacteristic : int { kRequired = 0, kOptional = 1 };

// The functions of OrtApi that are used here; the gaps stand for the others. One that can fail returns a status that the
// caller owns, or null.
struct Api {
  Status* (*CreateStatus)(ErrorCode, const char* text);  // 0
  const void* gap_1[25];
  Status* (*CreateCustomOpDomain)(const char* name, CustomOpDomain**);        // 26
  Status* (*CustomOpDomain_Add)(CustomOpDomain*, const CustomOp*);            // 27
  Status* (*AddCustomOpDomain)(SessionOptions*, CustomOpDomain*);             // 28
  const void* gap_29[22];
  Status* (*GetTensorMutableData)(Value*, void**);  // 51
  const void* gap_52[5];
  Status* (*CreateTensorTypeAndShapeInfo)(TensorTypeAndShapeInfo**);                               // 57
  Status* (*SetTensorElementType)(TensorTypeAndShapeInfo*, ElementType);                           // 58
  Status* (*SetDimensions)(TensorTypeAndShapeInfo*, const std::int64_t*, std::size_t rank);        // 59
  Status* (*GetTensorElementType)(const TensorTypeAndShapeInfo*, ElementType*);                    // 60
  Status* (*GetDimensionsCount)(const TensorTypeAndShapeInfo*, std::size_t*);                      // 61
  Status* (*GetDimensions)(const TensorTypeAndShapeInfo*, std::int64_t*, std::size_t rank);        // 62
  Status* (*GetSymbolicDimensions)(const TensorTypeAndShapeInfo*, const char**, std::size_t rank);  // 63
  const void* gap_64;
  Status* (*GetTensorTypeAndShape)(const Value*, TensorTypeAndShapeInfo**);            // 65
  const void* gap_66[12];
  Status* (*GetAllocatorWithDefaultOptions)(Allocator**);  // 78
  const void* gap_79[6];
  Status* (*KernelInfoGetAttribute_float)(const KernelInfo*, const char* name, float*);                // 85
  Status* (*KernelInfoGetAttribute_int64)(const KernelInfo*, const char* name, std::int64_t*);         // 86
  Status* (*KernelInfoGetAttribute_string)(const KernelInfo*, const char* name, char*, std::size_t*);  // 87
  const void* gap_88[2];
  Status* (*KernelContext_GetInput)(const KernelContext*, std::size_t index, const Value**);  // 90
  Status* (*KernelContext_GetOutput)(KernelContext*, std::size_t index, const std::int64_t*, std::size_t rank, Value**);  // 91
  const void* gap_92;
  void (*ReleaseStatus)(Status*);  // 93
  const void* gap_94[2];
  void (*ReleaseValue)(Value*);  // 96
  const void* gap_97[2];
  void (*ReleaseTensorTypeAndShapeInfo)(TensorTypeAndShapeInfo*);  // 99
  const void* gap_100;
  void (*ReleaseCustomOpDomain)(CustomOpDomain*);  // 101
  const void* gap_102[60];
  Status* (*KernelInfoGetAttributeArray_float)(const KernelInfo*, const char* name, float*, std::size_t*);         // 162
  Status* (*KernelInfoGetAttributeArray_int64)(const KernelInfo*, const char* name, std::int64_t*, std::size_t*);  // 163
  const void* gap_164[29];
  Status* (*KernelContext_GetGPUComputeStream)(const KernelContext*, void** stream);  // 193
  const void* gap_194[36];
  Status* (*KernelInfo_GetInputCount)(const KernelInfo*, std::size_t*);  // 230
  const void* gap_231[5];
  Status* (*KernelInfoGetAttribute_tensor)(const KernelInfo*, const char* name, Allocator*, Value**);  // 236
  const void* gap_237[12];
  Status* (*KernelInfoGetConstantInput_tensor)(const KernelInfo*, std::size_t index, int* is_constant, const Value**);  // 249
  const void* gap_250[18];
  Status* (*ShapeInferContext_GetInputTypeShape)(const ShapeInferContext*, std::size_t, TensorTypeAndShapeInfo**);  // 268
  Status* (*ShapeInferContext_GetAttribute)(const ShapeInferContext*, const char* name, const OpAttr**);            // 269
  Status* (*ShapeInferContext_SetOutputTypeShape)(const ShapeInferContext*, std::size_t,
                                                  const TensorTypeAndShapeInfo*);                                   // 270
  Status* (*SetSymbolicDimensions)(TensorTypeAndShapeInfo*, const char**, std::size_t rank);                        // 271
  Status* (*ReadOpAttr)(const OpAttr*, OpAttrType, void* value, std::size_t size, std::size_t* needed);             // 272
  const void* gap_273;
  Status* (*KernelContext_ParallelFor)(const KernelContext*, void (*task)(void*, std::size_t), std::size_t count,
                                       std::size_t batches, void* context);  // 274
  // What follows is there in API 24 only.
  const void* gap_275[139];
  Status* (*GetTensorElementTypeAndShapeDataReference)(const Value*, ElementType*, const std::int64_t**, std::size_t* rank);
};

struct ApiBase {
  const Api* (*GetApi)(std::uint32_t version);  // null where this runtime is older
  const char* (*GetVersionString)();
};

// One operator for one combination of types, in the layout of version 18.
struct CustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, std::size_t index);
  std::size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, std::size_t index);
  std::size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, KernelContext*);
  void (*KernelDestroy)(void* kernel);
  InputOutputCharacteristic (*GetInputCharacteristic)(const CustomOp*, std::size_t index);
  InputOutputCharacteristic (*GetOutputCharacteristic)(const CustomOp*, std::size_t index);
  MemType (*GetInputMemoryType)(const CustomOp*, std::size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  std::size_t (*GetMayInplace)(int** input_index, int** output_index);
  void (*ReleaseMayInplace)(int* input_index, int* output_index);
  std::size_t (*GetAliasMap)(int** input_index, int** output_index);
  void (*ReleaseAliasMap)(int* input_index, int* output_index);
};

}  // namespace actx::ort
