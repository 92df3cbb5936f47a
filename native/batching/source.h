// Where calls come from, and who sees to it: a thread of its own, or a lane that has nothing else to do.
//
// To wake a thread costs as much as to run a small model.  Where a model is run in a moment, the lane that has run it and
// would go to sleep reads the next call itself, and so nobody is woken for that.
#pragma once

#include <atomic>
#include <memory>

namespace headrace::batching {

class Source {
 public:
  virtual ~Source() = default;

  // The source that this thread sees to, for as long as it does.
  static std::weak_ptr<Source>& here();

  // A lane was woken for a call from here, and will soon be free again: it may take over meanwhile.  On the thread that
  // sees to the source.
  virtual void offer() noexcept = 0;
  // Sees to the source on this thread, until there is a call for a lane, until `until` (steady seconds), or until nothing
  // has come for some time.  False, and at once, when somebody else does.
  virtual bool attend(const std::atomic<bool>& is_called, double until) noexcept = 0;
  // Whoever attended it does something else for some time: somebody else has to.
  virtual void leave() noexcept = 0;
  // Lets `attend` look whether it is called, when that is on another thread.
  virtual void ring() noexcept = 0;
};

}  // namespace headrace::batching
