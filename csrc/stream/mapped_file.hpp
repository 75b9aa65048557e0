// A file in memory, read-only. Where it is cut short while it is mapped, reading what is gone would end the process (SIGBUS): here such a
// page reads as zeros, and the file says that it is damaged.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace pshard {

class MappedFile {
 public:
  // Throws StreamError where the file cannot be opened or mapped, or too many are.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] const uint8_t* data() const { return data_; }
  [[nodiscard]] int64_t size() const { return size_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] bool is_damaged() const;

 private:
  [[nodiscard]] int64_t size_now() const;

  std::string path_;
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  int file_ = -1;
  int slot_ = -1;
};

}  // namespace pshard
