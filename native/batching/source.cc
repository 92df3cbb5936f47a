#include "batching/source.h"

namespace headrace::batching {

std::weak_ptr<Source>& Source::here() {
  thread_local std::weak_ptr<Source> source;
  return source;
}

}  // namespace headrace::batching
