// Lets a training wait while predictions run on the same device, across processes: a few words of shared memory and a
// futex.
//
//     the side that serves    enter → run a batch → leave          about ten nanoseconds each while nobody waits
//     the side that trains    wait between two micro-batches       a load while nothing is served
//
// Whoever is killed leaves nothing behind that could block the other.  The side that serves holds a lock on the file for
// as long as it lives: where nobody holds it, nobody is served, whatever the words say.  The side that trains only counts
// itself while it waits, which costs the other a needless wake when it is killed then, and never waits longer than it was
// told.
//
// Everything here is safe from any thread.
#pragma once

#include <cstdint>
#include <string>

namespace headrace::gate {

// The words in the file.
struct Words;

// One process's hold on the file.  Not copyable; unmaps, and lets go of the lock, at its end.
class Gate {
 public:
  // The side that serves: makes the file, or takes over one that a process before left.  Throws std::system_error; of
  // kind EBUSY while another process serves with it.
  static Gate serve(const std::string& path);

  // The side that trains.  Throws std::system_error when there is no such file, std::runtime_error when it is no gate.
  static Gate train(const std::string& path);

  Gate(Gate&& other) noexcept;
  Gate& operator=(Gate&&) = delete;
  ~Gate();

  // A batch begins to run.
  void enter() noexcept;

  // It has run; `seconds` is what it took from its arrival, for who asks.  Wakes who waits when it was the last.
  void leave(double seconds) noexcept;

  // Waits until nothing is served, or for so many seconds; returns how many it waited.  0 without a system call while
  // nothing is served.
  double wait(double max_seconds) const noexcept;

  // Whether the words say that something is served: a single load.
  bool looks_busy() const noexcept;

  // How many batches run now; 0 when the process that served is gone.
  std::uint32_t busy() const noexcept;

  // How many wait now, or were killed while they waited.
  std::uint32_t waiting() const noexcept;

  // What a batch took lately, in seconds: each new one counts an eighth.  0 before the first.
  double latency_seconds() const noexcept;

 private:
  Gate(int descriptor, Words* words, bool serves) noexcept
      : descriptor_(descriptor), words_(words), serves_(serves) {}

  bool is_served() const noexcept;

  int descriptor_;
  Words* words_;
  bool serves_;
};

}  // namespace headrace::gate
