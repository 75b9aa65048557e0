#include "stream/mapped_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>

#include "probe/random.hpp"
#include "stream_cases.hpp"

namespace pshard {
namespace {

using namespace stream_cases;

// A file of all tensors of a schedule, one after the other.
class ModelFile {
 public:
  explicit ModelFile(const std::vector<Schedule>& schedules) {
    path = (std::filesystem::temp_directory_path() / ("pshard-mapped-" + std::to_string(getpid()) + ".bin")).string();
    for (const Schedule& schedule : schedules) {
      for (const StreamTensor& tensor : schedule.tensors) {
        if (std::any_of(tensors.begin(), tensors.end(), [&](const TensorInFile& t) { return t.name == tensor.name; })) continue;
        tensors.push_back({tensor.name, 0, n_bytes, tensor.n_bytes});
        n_bytes += (tensor.n_bytes + 4095) / 4096 * 4096;
      }
    }
    const GeneratedWeights weights(schedules, 1, 1);
    const int file = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);
    EXPECT_EQ(ftruncate(file, n_bytes), 0);
    for (const TensorInFile& tensor : tensors) {
      const StreamTensor named{tensor.name, {}, {}, tensor.n_bytes};
      EXPECT_EQ(pwrite(file, weights.bytes(named), static_cast<size_t>(tensor.n_bytes), tensor.offset), tensor.n_bytes);
    }
    close(file);
  }
  ~ModelFile() { std::filesystem::remove(path); }

  std::string path;
  int64_t n_bytes = 0;
  std::vector<TensorInFile> tensors;
};

std::vector<Schedule> some_schedules() {
  const Model m = model(6);
  return {schedule(m, placement(m, all_kinds(), Where::pinned), 4)};
}

TEST(MappedFile, WeightsOfAFileAreRunLikeOthers) {
  const std::vector<Schedule> schedules = some_schedules();
  const ModelFile file(schedules);
  const MappedWeights source({file.path}, file.tensors);
  HostBackend backend(backend_options());
  Executor executor(backend, source, schedules, checking());
  EXPECT_GT(executor.run(0).n_checked, 0);
}

TEST(MappedFile, CutShortWhileItIsMappedIsAnErrorAndNotTheEnd) {
  const std::vector<Schedule> schedules = some_schedules();
  const ModelFile file(schedules);
  HostBackend backend(backend_options());
  {
    const MappedWeights source({file.path}, file.tensors);
    HostBackendOptions unlocked = backend_options();
    unlocked.page_lock_bytes = 0;  // what is locked cannot go away
    HostBackend other(unlocked);
    ExecutorOptions options = checking();
    options.check = false;
    Executor executor(other, source, schedules, options);
    executor.run(0);
    ASSERT_EQ(truncate(file.path.c_str(), 4096), 0);
    try {
      executor.run(0);
      FAIL() << "nothing was noticed";
    } catch (const StreamError& error) {
      EXPECT_EQ(std::string(error.what()), file.path + ": became shorter while it was in use; restore it, and run again");
    }
  }
  const ModelFile again(schedules);
  const MappedWeights source({again.path}, again.tensors);
  Executor executor(backend, source, schedules, checking());
  EXPECT_GT(executor.run(0).n_checked, 0);
}

TEST(MappedFile, ASingleByteThatIsCutOffIsNoticed) {
  const std::vector<Schedule> schedules = some_schedules();
  const ModelFile file(schedules);
  const MappedWeights source({file.path}, file.tensors);
  HostBackend backend(backend_options());
  Executor executor(backend, source, schedules, checking());
  executor.run(0);
  EXPECT_EQ(source.fault(), "");
  ASSERT_EQ(truncate(file.path.c_str(), file.n_bytes - 1), 0);
  EXPECT_EQ(source.fault(), file.path + ": became shorter while it was in use; restore it, and run again");
  EXPECT_THROW(executor.run(0), StreamError);
}

TEST(MappedFile, TooShortOrMissingIsRefusedAtOnce) {
  const std::vector<Schedule> schedules = some_schedules();
  const ModelFile file(schedules);
  ASSERT_EQ(truncate(file.path.c_str(), file.n_bytes / 2), 0);
  EXPECT_THROW(MappedWeights({file.path}, file.tensors), StreamError);
  ASSERT_EQ(truncate(file.path.c_str(), 0), 0);
  EXPECT_THROW(MappedFile{file.path}, StreamError);
  EXPECT_THROW(MappedFile{file.path + ".missing"}, StreamError);
}

// A fault outside of any mapping goes to whoever handled it before.
TEST(MappedFile, OtherFaultsEndTheProcessAsBefore) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "sanitizers handle this signal themselves";
#endif
  const std::vector<Schedule> schedules = some_schedules();
  const ModelFile file(schedules);
  const MappedFile mapped(file.path);
  EXPECT_EXIT(raise(SIGBUS), testing::KilledBySignal(SIGBUS), "");
}

TEST(HostBackend, AnArenaThatIsRefusedIsAnError) { EXPECT_THROW(HostBackend(backend_options(1, int64_t{1} << 60)), StreamError); }

}  // namespace
}  // namespace pshard
