#include "stream/weights.hpp"

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>

#include "probe/measure.hpp"
#include "probe/random.hpp"
#include "stream/backend.hpp"

namespace pshard {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kPieceBytes = int64_t{4} << 20;

struct Piece {
  const StreamTensor* tensor;
  int64_t row, n_rows;
  uint8_t* to;
};

void fill(const Piece& piece, const std::optional<WeightType>& type, uint64_t seed) {
  const int64_t columns = piece.tensor->shape[0];
  if (type) {
    fill_random(*type, piece.n_rows, columns, seed, piece.to);
    return;
  }
  // No kernel multiplies them. Floats of four bytes stay finite.
  Random random(seed);
  const int64_t n_bytes = piece.n_rows * piece.tensor->type.row_bytes(columns);
  for (int64_t at = 0; at < n_bytes; ++at) piece.to[at] = at % 4 == 3 ? 0x3e : static_cast<uint8_t>(random.next() >> 56);
}

}  // namespace

GeneratedWeights::GeneratedWeights(const std::vector<Schedule>& schedules, uint64_t seed, int n_threads,
                                   const std::function<void()>& poll) {
  std::vector<const StreamTensor*> tensors;
  int64_t n_bytes = 0;
  for (const Schedule& schedule : schedules) {
    for (const StreamTensor& tensor : schedule.tensors) {
      if (!offsets_.try_emplace(tensor.name, n_bytes).second) continue;
      tensors.push_back(&tensor);
      n_bytes += (tensor.n_bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
  }
  try {
    memory_ = Buffer(n_bytes);
  } catch (const ProbeError&) {
    throw StreamError("weights of " + std::to_string(n_bytes) + " bytes do not fit in memory; run a smaller model");
  }
  std::vector<Piece> pieces;
  for (const StreamTensor* tensor : tensors) {
    const int64_t stride = tensor->type.row_bytes(tensor->shape[0]);
    const int64_t n_rows = stride > 0 ? tensor->n_bytes / stride : 0;
    const int64_t step = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(stride, 1));
    for (int64_t row = 0; row < n_rows; row += step) {
      pieces.push_back({tensor, row, std::min(step, n_rows - row), memory_.data() + offsets_[tensor->name] + row * stride});
    }
  }
  std::atomic<size_t> next{0};
  const auto work = [&](const std::function<void()>& look) {
    while (true) {
      if (look) look();
      const size_t i = next.fetch_add(1);
      if (i >= pieces.size()) return;
      const uint64_t name = std::hash<std::string>{}(pieces[i].tensor->name);
      fill(pieces[i], weight_type_of(pieces[i].tensor->type.id), seed ^ name ^ static_cast<uint64_t>(pieces[i].row) << 32);
    }
  };
  std::vector<std::jthread> threads;  // which end before what they work on, whatever is thrown
  try {
    for (int i = 1; i < n_threads; ++i) threads.emplace_back([&] { work({}); });
    work(poll);
  } catch (...) {
    next = pieces.size();
    throw;
  }
}

const uint8_t* GeneratedWeights::bytes(const StreamTensor& tensor) const {
  const auto known = offsets_.find(tensor.name);
  if (known == offsets_.end()) throw StreamError("tensor '" + tensor.name + "' was not generated; pass all schedules to the source");
  return memory_.data() + known->second;
}

MappedWeights::MappedWeights(const std::vector<std::string>& paths, const std::vector<TensorInFile>& tensors) {
  for (const std::string& path : paths) files_.push_back(std::make_unique<MappedFile>(path));
  for (const TensorInFile& tensor : tensors) {
    const MappedFile& file = *files_.at(static_cast<size_t>(tensor.file));
    if (tensor.offset < 0 || tensor.n_bytes < 0 || tensor.offset > file.size() - tensor.n_bytes) {
      throw StreamError(file.path() + ": has " + std::to_string(file.size()) + " bytes, tensor '" + tensor.name + "' ends at " +
                        std::to_string(tensor.offset + tensor.n_bytes) + "; download it again");
    }
    tensors_[tensor.name] = tensor;
  }
}

const uint8_t* MappedWeights::bytes(const StreamTensor& tensor) const {
  const auto known = tensors_.find(tensor.name);
  if (known == tensors_.end() || known->second.n_bytes != tensor.n_bytes) {
    throw StreamError("tensor '" + tensor.name + "' of " + std::to_string(tensor.n_bytes) + " bytes is not in the file");
  }
  return files_[static_cast<size_t>(known->second.file)]->data() + known->second.offset;
}

std::string MappedWeights::fault() const {
  for (const auto& file : files_) {
    if (file->is_damaged()) return file->path() + ": became shorter while it was in use; restore it, and run again";
  }
  return "";
}

}  // namespace pshard
