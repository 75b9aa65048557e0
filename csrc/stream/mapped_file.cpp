#include "stream/mapped_file.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "stream/backend.hpp"

namespace pshard {
namespace {

constexpr int kMostFiles = 256;

// What the signal handler may look at: no lock, no allocation.
struct Mapping {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> is_damaged{false};
};
std::array<Mapping, kMostFiles> mappings;
std::atomic<uintptr_t> page_bytes{4096};

std::mutex users_mutex;
int n_users = 0;
struct sigaction before;

// A page of zeros takes the place of the page that is gone; the read is then repeated. Any other SIGBUS goes where it went before.
void on_bus_error(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Mapping& mapping : mappings) {
    if (address < mapping.begin.load() || address >= mapping.end.load()) continue;
    const uintptr_t page = address / page_bytes.load() * page_bytes.load();
    const int saved = errno;
    // The system call itself: nothing of a library is safe to call here.
    const long zeros = syscall(SYS_mmap, page, page_bytes.load(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    errno = saved;
    mapping.is_damaged.store(true);
    if (zeros != -1) return;
  }
  if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  } else {
    sigaction(SIGBUS, &before, nullptr);
    raise(signal);  // which ends the process as soon as this returns
  }
}

void add_user() {
  const std::lock_guard lock(users_mutex);
  if (n_users++ > 0) return;
  page_bytes.store(static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)));
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &before);
}

void remove_user() {
  const std::lock_guard lock(users_mutex);
  if (--n_users == 0) sigaction(SIGBUS, &before, nullptr);
}

int enter(uintptr_t begin, uintptr_t end) {
  for (int slot = 0; slot < kMostFiles; ++slot) {
    uintptr_t empty = 0;
    Mapping& mapping = mappings[static_cast<size_t>(slot)];
    if (!mapping.begin.compare_exchange_strong(empty, begin)) continue;
    mapping.is_damaged.store(false);
    mapping.end.store(end);
    return slot;
  }
  return -1;
}

[[noreturn]] void refuse(const std::string& path, const char* what) {
  throw StreamError(path + ": cannot be " + what + " (" + std::strerror(errno) + ")");
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file_ < 0) refuse(path, "opened");
  size_ = size_now();
  if (size_ <= 0) {
    close(file_);
    throw StreamError(path + ": is empty, or cannot be read; download it again");
  }
  // Page-locking a private mapping would make the system copy it; some file systems share none.
  void* mapped = mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, file_, 0);
  if (mapped == MAP_FAILED) mapped = mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_PRIVATE, file_, 0);
  if (mapped == MAP_FAILED) {
    const int reason = errno;
    close(file_);
    errno = reason;
    refuse(path, "mapped");
  }
  data_ = static_cast<uint8_t*>(mapped);
  const auto begin = reinterpret_cast<uintptr_t>(mapped);
  slot_ = enter(begin, begin + static_cast<uintptr_t>(size_));
  if (slot_ < 0) {
    munmap(data_, static_cast<size_t>(size_));
    close(file_);
    throw StreamError(path + ": more than " + std::to_string(kMostFiles) + " files are mapped at once; join the parts of the model");
  }
  add_user();
}

MappedFile::~MappedFile() {
  Mapping& mapping = mappings[static_cast<size_t>(slot_)];
  mapping.end.store(0);
  mapping.begin.store(0);
  munmap(data_, static_cast<size_t>(size_));
  close(file_);
  remove_user();
}

int64_t MappedFile::size_now() const {
  struct stat status {};
  return fstat(file_, &status) == 0 ? status.st_size : 0;
}

// Within the last page that is left, what is gone reads as zeros without a signal.
bool MappedFile::is_damaged() const { return mappings[static_cast<size_t>(slot_)].is_damaged.load() || size_now() < size_; }

}  // namespace pshard
