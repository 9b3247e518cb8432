#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

namespace paceline {

// Array whose new elements are left uninitialised. It either grows by std::realloc, which remaps large blocks instead
// of copying them, or is mapped whole once, so that its elements never move; pages that were never written cost no
// memory, so both are cheap where std::vector is not.
template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (is_mapped_) {
      munmap(data_, num_bytes());
    } else {
      std::free(data_);
    }
  }

  // A buffer of `size` > 0 elements, each 0, that never moves. Throws std::bad_alloc.
  static Buffer mapped(std::size_t size) {
    Buffer buffer;
    void* data = mmap(nullptr, size * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    buffer.data_ = static_cast<T*>(data);
    buffer.size_ = size;
    buffer.is_mapped_ = true;
    return buffer;
  }

  // Changes the size of a buffer that is not mapped; throws std::bad_alloc and leaves the buffer as it was.
  void resize(std::size_t size) {
    if (size == size_) return;
    void* grown = std::realloc(data_, size * sizeof(T));
    if (grown == nullptr) throw std::bad_alloc();
    data_ = static_cast<T*>(grown);
    size_ = size;
  }

  // Asks for huge pages where nothing was written yet: a walk through a large buffer misses the TLB at every step
  // otherwise. For buffers that will be written whole. Only a hint.
  void prefer_huge_pages() {
#ifdef MADV_HUGEPAGE
    constexpr std::uintptr_t kPage = 4096;
    const auto first = (reinterpret_cast<std::uintptr_t>(data_) + kPage - 1) / kPage * kPage;
    const auto last = (reinterpret_cast<std::uintptr_t>(data_) + num_bytes()) / kPage * kPage;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  }

  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::size_t num_bytes() const { return size_ * sizeof(T); }

 private:
  void swap(Buffer& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(is_mapped_, other.is_mapped_);
  }

  T* data_ = nullptr;
  std::size_t size_ = 0;
  bool is_mapped_ = false;
};

}  // namespace paceline
