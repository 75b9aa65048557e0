#include "probe/storage.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>

namespace pshard {
namespace {

constexpr int64_t kChunk = 1 << 20;

// A file of three chunks and a rest, gone when the test is over.
struct TemporaryFile {
  TemporaryFile() {
    std::ofstream out(path, std::ios::binary);
    for (int64_t i = 0; i < 3 * kChunk + 100; ++i) out.put(static_cast<char>(i * i >> 7));
  }
  ~TemporaryFile() { std::filesystem::remove(path); }
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("pshard_storage_test." + std::to_string(std::random_device{}()));
};

TEST(Storage, ReadsChunksAndSaysHow) {
  const TemporaryFile file;
  Policy policy;
  policy.max_count = 8;  // more than there are chunks
  const ProbeResult result = probe_storage(file.path.string(), int64_t{1} << 40, kChunk, policy);
  EXPECT_DOUBLE_EQ(result.n_bytes, kChunk);
  EXPECT_GE(result.time.count, policy.min_count);
  EXPECT_EQ(result.note.substr(0, 5), "read ");
}

// The clock is looked at before and after each read, so a file that every look changes differs from what was read.
TEST(Storage, RefusesBytesThatASecondReadDoesNotGive) {
  const TemporaryFile file;
  std::fstream writer(file.path, std::ios::binary | std::ios::in | std::ios::out);
  char last = 0;
  Timer timer = steady_timer();
  timer.now = [&, now = timer.now] {
    writer.seekp(kChunk / 2);
    writer.put(++last);
    writer.flush();
    return now();
  };
  Policy policy;
  policy.max_count = policy.min_count;
  try {
    probe_storage(file.path.string(), kChunk, kChunk, policy, timer);
    FAIL() << "nothing was refused";
  } catch (const ProbeError& error) {
    EXPECT_NE(std::string(error.what()).find("wrong result: bytes at 0 differ from those of a second read"), std::string::npos)
        << error.what();
  }
}

TEST(Storage, RefusesWhatItCannotRead) {
  const TemporaryFile file;
  EXPECT_THROW(probe_storage(file.path.string() + ".absent", kChunk, kChunk, Policy{}), ProbeError);
  EXPECT_THROW(probe_storage(file.path.string(), 8 * kChunk, 4 * kChunk, Policy{}), ProbeError);
  EXPECT_THROW(probe_storage(file.path.string(), kChunk, 5000, Policy{}), std::invalid_argument);
}

}  // namespace
}  // namespace pshard
