//go:build tools

// Package tools names what the mesh tests build from this module's requirements.
package tools

import _ "github.com/envoyproxy/gateway/cmd/envoy-gateway"
