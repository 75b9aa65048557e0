#include "probe/storage.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

namespace pshard {
namespace {

constexpr int64_t kPageBytes = 4096;
constexpr double kResidentShare = 0.01;  // of pages that may still lie in memory when a read counts as cold

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw ProbeError(path + ": " + what + " (" + std::strerror(errno) + "); name a readable file on the file system of the model");
}

class File {
 public:
  File(const std::string& path, int flags) : handle_(open(path.c_str(), O_RDONLY | O_CLOEXEC | flags)) {}
  ~File() {
    if (handle_ >= 0) close(handle_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  [[nodiscard]] bool is_open() const { return handle_ >= 0; }
  [[nodiscard]] int handle() const { return handle_; }

 private:
  int handle_;
};

bool read_at(const File& file, int64_t offset, int64_t n_bytes, uint8_t* to) {
  while (n_bytes > 0) {
    const ssize_t got = pread(file.handle(), to, static_cast<std::size_t>(n_bytes), offset);
    if (got <= 0) return false;
    offset += got;
    to += got;
    n_bytes -= got;
  }
  return true;
}

// Of the pages of a file that the operating system still holds in memory.
double resident_share(const File& file, int64_t n_bytes) {
  const auto length = static_cast<std::size_t>(n_bytes);
  void* mapped = mmap(nullptr, length, PROT_READ, MAP_SHARED, file.handle(), 0);
  if (mapped == MAP_FAILED) return 1.0;
  std::vector<unsigned char> pages((length + kPageBytes - 1) / kPageBytes);
  const bool is_told = mincore(mapped, length, pages.data()) == 0;
  munmap(mapped, length);
  const auto held = std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; });
  return is_told ? static_cast<double>(held) / static_cast<double>(pages.size()) : 1.0;
}

}  // namespace

ProbeResult probe_storage(const std::string& path, int64_t n_bytes, int64_t chunk_bytes, const Policy& policy, const Timer& timer) {
  if (chunk_bytes < kPageBytes || chunk_bytes % kPageBytes != 0) {
    throw std::invalid_argument("chunk_bytes is " + std::to_string(chunk_bytes) + ", must be a multiple of " + std::to_string(kPageBytes));
  }
  const File cached(path, 0);
  if (!cached.is_open()) fail(path, "cannot be opened");
  struct stat status {};
  if (fstat(cached.handle(), &status) != 0) fail(path, "cannot be looked at");
  const int64_t n_chunks = std::min<int64_t>(n_bytes, status.st_size) / chunk_bytes;
  if (n_chunks < 1) {
    throw ProbeError(path + ": " + std::to_string(status.st_size) + " bytes, fewer than the " + std::to_string(chunk_bytes) +
                     " that one sample reads; name a larger file");
  }
  const Buffer buffer(chunk_bytes);
  const Buffer again(chunk_bytes);

  // Some file systems open a file with O_DIRECT and refuse to read it.
#if defined(O_DIRECT)
  const File direct(path, O_DIRECT);
#else
  const File direct("", 0);
#endif
  const bool is_direct = direct.is_open() && read_at(direct, 0, chunk_bytes, buffer.data());
  const File& file = is_direct ? direct : cached;
  const auto drop = [&] {
    if (!is_direct) posix_fadvise(cached.handle(), 0, n_chunks * chunk_bytes, POSIX_FADV_DONTNEED);
  };

  ProbeResult result;
  drop();
  const double held = is_direct ? 0.0 : resident_share(cached, n_chunks * chunk_bytes);
  int64_t next = 0;
  int64_t offset = 0;
  result.time = measure(
      [&] {
        offset = next++ % n_chunks * chunk_bytes;
        if (offset == 0) drop();
        const double start = timer.now();
        if (!read_at(file, offset, chunk_bytes, buffer.data())) fail(path, "cannot be read");
        return timer.now() - start;
      },
      [&] {
        if (!read_at(cached, offset, chunk_bytes, again.data())) fail(path, "cannot be read");
        const bool is_same = std::memcmp(buffer.data(), again.data(), static_cast<std::size_t>(chunk_bytes)) == 0;
        return is_same ? std::string() : "bytes at " + std::to_string(offset) + " differ from those of a second read";
      },
      policy, timer);
  result.n_bytes = static_cast<double>(chunk_bytes);
  result.n_threads = 1;
  result.is_cold = held <= kResidentShare;
  result.note = is_direct ? "read with O_DIRECT" : "read after asking the operating system to drop the pages";
  if (!result.is_cold) result.note += ", of which it still held " + std::to_string(static_cast<int>(100.0 * held)) + " %";
  return result;
}

}  // namespace pshard
