// Compiles only if custom_ops/cpu/src/ort/abi.h has the layout of a real onnxruntime_c_api.h of version 1.18 or newer.
#include <onnxruntime_c_api.h>

#include <cstddef>

#include "ort/abi.h"

namespace ours = actx::ort;

#define SAME_SLOT(name) \
  static_assert(offsetof(ours::Api, name) == offsetof(OrtApi, name) && sizeof(ours::Api::name) == sizeof(OrtApi::name), #name)

SAME_SLOT(CreateStatus);
SAME_SLOT(CreateCustomOpDomain);
SAME_SLOT(CustomOpDomain_Add);
SAME_SLOT(AddCustomOpDomain);
SAME_SLOT(GetTensorMutableData);
SAME_SLOT(CreateTensorTypeAndShapeInfo);
SAME_SLOT(SetTensorElementType);
SAME_SLOT(SetDimensions);
SAME_SLOT(GetTensorElementType);
SAME_SLOT(GetDimensionsCount);
SAME_SLOT(GetDimensions);
SAME_SLOT(GetSymbolicDimensions);
SAME_SLOT(GetTensorTypeAndShape);
SAME_SLOT(GetAllocatorWithDefaultOptions);
SAME_SLOT(KernelInfoGetAttribute_float);
SAME_SLOT(KernelInfoGetAttribute_int64);
SAME_SLOT(KernelInfoGetAttribute_string);
SAME_SLOT(KernelContext_GetInput);
SAME_SLOT(KernelContext_GetOutput);
SAME_SLOT(ReleaseStatus);
SAME_SLOT(ReleaseValue);
SAME_SLOT(ReleaseTensorTypeAndShapeInfo);
SAME_SLOT(ReleaseCustomOpDomain);
SAME_SLOT(KernelInfoGetAttributeArray_float);
SAME_SLOT(KernelInfoGetAttributeArray_int64);
SAME_SLOT(KernelContext_GetGPUComputeStream);
SAME_SLOT(KernelInfo_GetInputCount);
SAME_SLOT(KernelInfoGetAttribute_tensor);
SAME_SLOT(KernelInfoGetConstantInput_tensor);
SAME_SLOT(ShapeInferContext_GetInputTypeShape);
SAME_SLOT(ShapeInferContext_GetAttribute);
SAME_SLOT(ShapeInferContext_SetOutputTypeShape);
SAME_SLOT(SetSymbolicDimensions);
SAME_SLOT(ReadOpAttr);
SAME_SLOT(KernelContext_ParallelFor);
#if ORT_API_VERSION >= 24
SAME_SLOT(GetTensorElementTypeAndShapeDataReference);
#endif

#define SAME_MEMBER(name) static_assert(offsetof(ours::CustomOp, name) == offsetof(OrtCustomOp, name), #name)

SAME_MEMBER(version);
SAME_MEMBER(CreateKernel);
SAME_MEMBER(GetName);
SAME_MEMBER(GetExecutionProviderType);
SAME_MEMBER(GetInputType);
SAME_MEMBER(GetInputTypeCount);
SAME_MEMBER(GetOutputType);
SAME_MEMBER(GetOutputTypeCount);
SAME_MEMBER(KernelCompute);
SAME_MEMBER(KernelDestroy);
SAME_MEMBER(GetInputCharacteristic);
SAME_MEMBER(GetOutputCharacteristic);
SAME_MEMBER(GetInputMemoryType);
SAME_MEMBER(GetVariadicInputMinArity);
SAME_MEMBER(GetVariadicInputHomogeneity);
SAME_MEMBER(GetVariadicOutputMinArity);
SAME_MEMBER(GetVariadicOutputHomogeneity);
SAME_MEMBER(CreateKernelV2);
SAME_MEMBER(KernelComputeV2);
SAME_MEMBER(InferOutputShapeFn);
SAME_MEMBER(GetStartVersion);
SAME_MEMBER(GetEndVersion);
SAME_MEMBER(GetMayInplace);
SAME_MEMBER(ReleaseMayInplace);
SAME_MEMBER(GetAliasMap);
SAME_MEMBER(ReleaseAliasMap);

static_assert(offsetof(ours::ApiBase, GetApi) == offsetof(OrtApiBase, GetApi));
static_assert(offsetof(ours::ApiBase, GetVersionString) == offsetof(OrtApiBase, GetVersionString));
static_assert(int{ours::kFail} == ORT_FAIL && int{ours::kInvalidArgument} == ORT_INVALID_ARGUMENT);
static_assert(int{ours::kRequired} == INPUT_OUTPUT_REQUIRED && int{ours::kOptional} == INPUT_OUTPUT_OPTIONAL);
static_assert(int{ours::kOpAttrInt} == ORT_OP_ATTR_INT && int{ours::kMemTypeDefault} == OrtMemTypeDefault);
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == 1 && ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 == 2 &&
              ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 == 3 && ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == 10 &&
              ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 == 16);
