// Who may listen in, and who may come in: plain text, TLS, or TLS for callers who show a certificate.
#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "door/options.h"

namespace headrace::door {

// Certificates are looked at again every `kRotationSeconds`; connections that are open go on with what they began with.
inline constexpr unsigned kRotationSeconds = 1;

std::shared_ptr<grpc::ServerCredentials> credentials_of(const Tls& tls);

}  // namespace headrace::door
