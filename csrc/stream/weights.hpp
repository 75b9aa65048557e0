// Where the bytes of weights come from: a GGUF file that is mapped, or blocks that are generated where there is no file, or only its shape.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "probe/memory.hpp"
#include "stream/mapped_file.hpp"
#include "stream/schedule.hpp"

namespace pshard {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // In host memory, as long as the source lives. Throws StreamError for a tensor that it does not have.
  [[nodiscard]] virtual const uint8_t* bytes(const StreamTensor& tensor) const = 0;
  // What happened to the bytes since they were handed out; "" if nothing.
  [[nodiscard]] virtual std::string fault() const { return ""; }
};

// Valid random blocks with finite scales, seeded by tensor; no two tensors share bytes.
class GeneratedWeights : public WeightSource {
 public:
  // All tensors of the schedules, filled by `n_threads` threads. Throws StreamError where memory does not suffice, and what `poll` throws,
  // which is called now and then.
  GeneratedWeights(const std::vector<Schedule>& schedules, uint64_t seed, int n_threads, const std::function<void()>& poll = {});
  const uint8_t* bytes(const StreamTensor& tensor) const override;
  [[nodiscard]] int64_t n_bytes() const { return memory_.size(); }

 private:
  Buffer memory_;
  std::map<std::string, int64_t> offsets_;
};

struct TensorInFile {
  std::string name;
  int32_t file = 0;  // index
  int64_t offset = 0;
  int64_t n_bytes = 0;
};

class MappedWeights : public WeightSource {
 public:
  // Throws StreamError where a file cannot be mapped or is too short for a tensor.
  MappedWeights(const std::vector<std::string>& paths, const std::vector<TensorInFile>& tensors);
  const uint8_t* bytes(const StreamTensor& tensor) const override;
  std::string fault() const override;

 private:
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<std::string, TensorInFile> tensors_;
};

}  // namespace pshard
