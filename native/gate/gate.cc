#include "gate/gate.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <ctime>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace headrace::gate {

// On lines of their own: what is written at every batch must not slow down who only looks.
struct Words {
  std::atomic<std::uint64_t> magic;
  alignas(64) std::atomic<std::uint32_t> busy;     // the futex: batches that run
  std::atomic<std::uint32_t> waiters;              // who must be woken
  alignas(64) std::atomic<std::uint64_t> latency;  // nanoseconds
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free && std::atomic<std::uint64_t>::is_always_lock_free,
              "a lock would belong to one process");

namespace {

constexpr std::uint64_t kMagic = 0x6865616472616365;  // "headrace"
// How often who waits looks whether the process that serves still lives.
constexpr double kLookSeconds = 0.02;

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

// A descriptor that is closed unless it is handed on.
class Descriptor {
 public:
  explicit Descriptor(int number) noexcept : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int get() const noexcept { return number_; }
  int release() noexcept { return std::exchange(number_, -1); }

 private:
  int number_;
};

Words* map(int descriptor, const std::string& path) {
  void* memory = mmap(nullptr, sizeof(Words), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) fail("cannot map " + path);
  return static_cast<Words*>(memory);
}

// A lock on the whole file that belongs to the open file, not to the process: it goes with the last descriptor.
struct flock whole(short type) noexcept {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  return lock;
}

std::uint32_t* word(std::atomic<std::uint32_t>& atomic) noexcept { return reinterpret_cast<std::uint32_t*>(&atomic); }

void sleep_while(std::atomic<std::uint32_t>& atomic, std::uint32_t value, double seconds) noexcept {
  timespec span{};
  span.tv_sec = static_cast<std::time_t>(seconds);
  span.tv_nsec = static_cast<long>((seconds - std::floor(seconds)) * 1e9);
  // Not FUTEX_PRIVATE: the other side is another process.  Whatever wakes us, the caller looks again.
  syscall(SYS_futex, word(atomic), FUTEX_WAIT, value, &span, nullptr, 0);
}

void wake_all(std::atomic<std::uint32_t>& atomic) noexcept {
  syscall(SYS_futex, word(atomic), FUTEX_WAKE, 0x7fffffff, nullptr, nullptr, 0);
}

}  // namespace

Gate Gate::serve(const std::string& path) {
  Descriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (file.get() < 0) fail("cannot open " + path);
  struct flock lock = whole(F_WRLCK);
  if (fcntl(file.get(), F_OFD_SETLK, &lock) != 0) {
    if (errno == EAGAIN || errno == EACCES) errno = EBUSY;
    fail("another process serves with " + path);
  }
  if (ftruncate(file.get(), sizeof(Words)) != 0) fail("cannot make room in " + path);
  Words* words = map(file.get(), path);
  words->busy.store(0);
  words->latency.store(0);
  words->magic.store(kMagic, std::memory_order_release);
  wake_all(words->busy);  // who waited for a process that was killed
  return Gate(file.release(), words, true);
}

Gate Gate::train(const std::string& path) {
  Descriptor file(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (file.get() < 0) fail("cannot open " + path);
  struct stat facts {};
  if (fstat(file.get(), &facts) != 0) fail("cannot look at " + path);
  if (facts.st_size < static_cast<off_t>(sizeof(Words))) throw std::runtime_error(path + " is no gate");
  Words* words = map(file.get(), path);
  if (words->magic.load(std::memory_order_acquire) != kMagic) {
    munmap(words, sizeof(Words));
    throw std::runtime_error(path + " is no gate");
  }
  return Gate(file.release(), words, false);
}

Gate::Gate(Gate&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      words_(std::exchange(other.words_, nullptr)),
      serves_(other.serves_) {}

Gate::~Gate() {
  if (words_ != nullptr) munmap(words_, sizeof(Words));
  if (descriptor_ >= 0) close(descriptor_);
}

void Gate::enter() noexcept { words_->busy.fetch_add(1); }

void Gate::leave(double seconds) noexcept {
  const double before = static_cast<double>(words_->latency.load(std::memory_order_relaxed));
  const double taken = std::max(0.0, seconds) * 1e9;
  // Two that leave at once may lose one of the two figures, which only says what is usual.
  words_->latency.store(static_cast<std::uint64_t>(before == 0 ? taken : before + (taken - before) / 8),
                        std::memory_order_relaxed);
  // Sequentially consistent, as is the look in `wait`: either we see the waiter, or it sees that we have left.
  if (words_->busy.fetch_sub(1) == 1 && words_->waiters.load() != 0) wake_all(words_->busy);
}

double Gate::wait(double max_seconds) const noexcept {
  if (!looks_busy() || !(max_seconds > 0)) return 0;
  using Clock = std::chrono::steady_clock;
  const auto began = Clock::now();
  const auto waited = [&] { return std::chrono::duration<double>(Clock::now() - began).count(); };
  double looked_at = -kLookSeconds;
  double now = 0;
  words_->waiters.fetch_add(1);
  while (const std::uint32_t busy = words_->busy.load()) {
    now = waited();
    if (now >= max_seconds) break;
    if (now - looked_at >= kLookSeconds) {
      if (!is_served()) break;
      looked_at = now;
    }
    sleep_while(words_->busy, busy, std::min(max_seconds - now, kLookSeconds));
  }
  words_->waiters.fetch_sub(1);
  return waited();
}

bool Gate::looks_busy() const noexcept { return words_->busy.load(std::memory_order_relaxed) != 0; }

std::uint32_t Gate::busy() const noexcept { return is_served() ? words_->busy.load() : 0; }

std::uint32_t Gate::waiting() const noexcept { return words_->waiters.load(); }

double Gate::latency_seconds() const noexcept {
  return static_cast<double>(words_->latency.load(std::memory_order_relaxed)) / 1e9;
}

bool Gate::is_served() const noexcept {
  if (serves_) return true;
  // Asks who holds a lock, and takes none.
  struct flock lock = whole(F_RDLCK);
  return fcntl(descriptor_, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

}  // namespace headrace::gate
