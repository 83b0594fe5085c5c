// Runs a bundle of actx on a device without Python.
//
//   run_bundle BUNDLE LIBRARY INPUT
//
// INPUT holds samples as raw float32. The graph of actx nodes runs if LIBRARY, the CPU kernels, can be loaded here, and the
// portable graph otherwise. Prints one line for each sample: the elements of the first output.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <numeric>
#include <vector>

// The graph with its kernels, or the one that needs none.
Ort::Session open_bundle(Ort::Env& env, const std::filesystem::path& bundle, const char* library) {
  try {
    Ort::SessionOptions options;
    options.RegisterCustomOpsLibrary(library);
    return Ort::Session(env, (bundle / "model.ort-cpu.onnx").c_str(), options);
  } catch (const Ort::Exception& error) {
    std::cerr << "running the portable graph: " << error.what() << "\n";
    return Ort::Session(env, (bundle / "model.onnx").c_str(), Ort::SessionOptions());
  }
}

std::vector<float> read_floats(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  std::vector<float> values(bytes.size() / sizeof(float));
  std::copy_n(bytes.data(), values.size() * sizeof(float), reinterpret_cast<char*>(values.data()));
  return values;
}

std::int64_t product(std::vector<std::int64_t>::const_iterator first, std::vector<std::int64_t>::const_iterator last) {
  return std::accumulate(first, last, std::int64_t{1}, std::multiplies<>());
}

int run(const std::filesystem::path& bundle, const char* library, const char* input_file) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING);
  Ort::Session session = open_bundle(env, bundle, library);
  Ort::AllocatorWithDefaultOptions allocator;
  const auto input_name = session.GetInputNameAllocated(0, allocator);
  const auto output_name = session.GetOutputNameAllocated(0, allocator);

  std::vector<float> samples = read_floats(input_file);
  auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();  // the batch is -1: of any size
  shape[0] = static_cast<std::int64_t>(samples.size()) / product(shape.begin() + 1, shape.end());
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto input = Ort::Value::CreateTensor<float>(memory, samples.data(), samples.size(), shape.data(), shape.size());

  const char* input_names[] = {input_name.get()};
  const char* output_names[] = {output_name.get()};
  const auto outputs = session.Run(Ort::RunOptions(), input_names, &input, 1, output_names, 1);
  const float* values = outputs[0].GetTensorData<float>();
  const auto count = static_cast<std::int64_t>(outputs[0].GetTensorTypeAndShapeInfo().GetElementCount());
  for (std::int64_t i = 0; i < count; ++i) std::cout << values[i] << ((i + 1) % (count / shape[0]) == 0 ? "\n" : " ");
  return 0;
}

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "usage: run_bundle BUNDLE LIBRARY INPUT\n";
    return 2;
  }
  try {
    return run(arguments[1], arguments[2], arguments[3]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
