// Shows what the histogram makes of numbers: reads them from standard input, one a line, and prints their count, mean,
// greatest, and the quantiles that the command line names.  For its test.
#include <cstdio>
#include <cstdlib>

#include "histogram.h"

int main(int argc, char** argv) {
  load::Histogram histogram;
  long long number = 0;
  while (std::scanf("%lld", &number) == 1) histogram.add(number);
  std::printf("%llu %.17g %llu", static_cast<unsigned long long>(histogram.count()), histogram.mean(),
              static_cast<unsigned long long>(histogram.most()));
  for (int i = 1; i < argc; ++i) std::printf(" %.17g", histogram.quantile(std::atof(argv[i])));
  std::printf("\n");
}
